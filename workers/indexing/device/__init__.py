"""One thread owns the encoder and batches across messages.

In reading order: ``device`` what threads talk to, ``batches`` which windows make the next batch,
``waiting`` what waits, ``budget`` bounds that, ``fair_lock`` lets devices take turns, ``measure``
finds the best batch.
"""
