"""Moments: where in a recording something is heard.

``windows`` (a recording's windows, cut out of what the audio tower gives), ``hearing`` (their
vectors, each fused with the recording's metadata like an item), ``words`` (fusing where words
repeat), ``stored`` (what an item's point says of them), ``moments`` (from windows' scores to the
few moments that are named).
"""
