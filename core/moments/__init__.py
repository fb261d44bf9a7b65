"""Moments: where in a recording something is heard.

``windows`` (a recording's windows, cut out of what the audio tower gives), ``hearing`` (their
vectors, each fused with the recording's metadata like an item), ``moments`` (from windows' scores
to the few moments that are named).
"""
