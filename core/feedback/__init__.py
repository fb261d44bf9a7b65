"""What listeners say of hits, kept until an encoder is improved by it.

``verdicts`` (what is said), ``book`` (where it is kept: JSON lines by day, in the registry).
"""
