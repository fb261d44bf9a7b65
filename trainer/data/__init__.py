"""What is trained on.

``datasets`` (manifests, ClothoV2, AudioCaps, buckets), ``metadata`` (kinds of it), ``cache``
(decoded sounds), ``corpus`` (all of it, divided), ``batches``, ``augment``, ``gallery`` (what an
encoder hears of it).
"""
