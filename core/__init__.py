"""Sounds, encoders, index and search: what every process knows; it never imports a queue.

The ground, which every room may use: ``errors`` (whose fault something is), ``settings``, ``items``
(an object and its metadata), ``query`` (a question and its filter), ``batcher`` (what many threads
ask becomes one call), ``threads``. The rooms: ``storage``, ``audio``, ``encoder``, ``bundles``,
``index``, ``search``, ``evaluation``.
"""
