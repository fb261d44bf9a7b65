"""The command line ``audiofuse``.

``main`` (all commands, what they exit with), ``up`` (everything on one machine), ``doctor`` (what
is wrong, and what to do; what so many sounds need), ``explain`` (why something is found or not),
``search`` (asking),
``processes`` (what runs until it is told to end), ``encoders`` (evaluating, bundles), ``moments``
(evaluating moments, composing recordings), ``dead`` (what was rejected), ``feedback`` (what fits),
``rollout`` (exchanging the encoder), ``snapshot`` (the index, kept and put back). What all of them
show and take is in ``terminal``.
"""
