"""Encoders as files, and which of them is live.

``manifest`` (what a bundle says of itself), ``bundle`` (makes them; loads them to
train), ``loading`` (loads them to run), ``registry`` (where they are kept), ``document`` (which
versions are live, candidates or on their way out).
"""
