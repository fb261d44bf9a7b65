"""A message's way from the queue to a point in the index, in reading order.

``app`` (the Celery application and its task), ``build`` (how a worker is put together), ``worker``
(takes, holds, acknowledges), ``message_threads`` (a thread for each message in hand), ``retries``
(what becomes of a message), ``breaker`` (an outage told from bad objects), ``watchdog`` (what takes
too long ends the process), ``sync`` (bucket to index, one key), ``collaborators`` (what a sync
works with), ``points`` (what a point says), ``versions`` (several encoders), ``stages`` (index and
downloads, shared by threads). Decoding processes and the device have rooms of their own.
"""
