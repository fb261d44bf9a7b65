"""How weights change.

``start`` (what is trained), ``augment`` (masks and jitter), ``config`` (every option), ``loss``
(NT-Xent), ``step``, ``fit`` (epochs, checkpoints), ``default`` (the shipped encoder's recipe).
"""
