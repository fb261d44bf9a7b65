"""One question to several deployments of the same encoder: a search service without an index.

``members`` (which deployments, and asking one within its deadline), ``models`` (their answers, and
who is missing), ``merging`` (many answers made one), ``asking`` (one question to all, or to whom it
concerns), ``routes`` and ``sounds`` (over HTTP), ``app`` (put together).
"""
