"""A message's way from the queue to a point.

``app`` (the worker process), ``message_threads`` (a thread for each message), ``retries`` (what an
error means for a message), ``sync`` (make the index agree with one object), ``versions`` (in every
encoder version), ``stages`` (what many threads ask is asked together). Below: ``decoding`` and
``device``.
"""
