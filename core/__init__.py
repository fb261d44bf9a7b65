"""Sounds, encoders, index and search: what every process knows; it never imports a queue.

The ground, which every room may use: ``errors`` (whose fault something is), ``settings``, ``homes``
(where state lives), ``items`` (an object and its metadata), ``query`` (a question and its filter),
``batcher`` (what many threads ask becomes one call), ``threads``, ``retrying`` (again, ever more
seldom), ``cgroups`` (what a container may take), ``cores`` (how many CPUs there are to use),
``memory`` (what is used, and what was freed goes back), ``children`` (processes that end with their
parent). The rooms: ``storage``, ``audio``, ``model``, ``encoder``, ``bundles``, ``index``,
``search``, ``evaluation``.
"""
