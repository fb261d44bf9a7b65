"""Decoding in processes of their own, which may hang, crash or eat memory and cost one sound only.

In reading order: ``pool`` what threads talk to, ``turns`` who may use which process next,
``decoder`` the worker's side of one process, ``child`` the process itself, and what it is told.
"""
