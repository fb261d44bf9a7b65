"""One item: what the bucket says of it now, and what the index is made to say.

``sync`` (bucket to index, one key), ``collaborators`` (what a sync works with), ``points`` (what a
point says), ``moments`` (those of a recording, beside its point).
"""
