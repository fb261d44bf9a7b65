"""The bucket is the truth: what no event told is found by comparing.

``reconcile`` (compare), ``backfill`` (queue what differs), ``agreement`` (is a version complete?).
"""
