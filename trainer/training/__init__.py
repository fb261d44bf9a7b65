"""How weights change.

``start`` (what is trained), ``augment`` (masks and jitter), ``config`` (every option), ``loss``
(NT-Xent), ``teacher`` (what larger models say of a batch), ``step``, ``memory`` (how much of a
batch at once), ``fit`` (epochs, checkpoints), ``default`` (the shipped encoder's recipe),
``calibration`` (what scores mean).
"""
