"""What is trained on.

``datasets`` (any source), which knows benchmarks, ``wavcaps`` and ``bucket``; ``splits`` (learned
from or judged by), ``metadata`` (kinds of it), ``cache`` (decoded sounds), ``corpus`` (all of it,
divided), ``batches``, ``gallery`` (its audio embeddings).
"""
