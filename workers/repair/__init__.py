"""The bucket is the truth: what no event told is found by comparing.

``findings`` (what may be found), ``brake`` (too many removals are held back), ``inventory`` (a
listing that S3 wrote), ``columnar`` (its rows in Parquet and ORC), ``listing`` (one that outlives
its process), ``comparison`` (bucket and index held against each other), ``agreement`` (is a version
complete?), ``reconcile`` (compare with the live index), ``feed`` (hand over what differs, and
follow it), ``backfill`` (until nothing differs), ``explain`` (why one object is found or not, and
the audit of all).
"""
