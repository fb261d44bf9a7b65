"""A message's way from the queue to a point in the index, in reading order.

``app`` (the Celery application and its task), ``build`` (how a worker is put together), ``worker``
(takes, holds, acknowledges), ``message_threads`` (a thread for each message in hand), ``retries``
(what becomes of a message), ``breaker`` (an outage told from bad objects), ``watchdog`` (what takes
too long ends the process), ``versions`` (several encoders), ``stages`` (index and downloads, shared
by threads). Bucket to index, one key, is the room ``items``; decoding processes and the device have
rooms of their own.
"""
