"""How weights change.

``start`` (what is trained), ``loss`` (NT-Xent), ``step``, ``fit`` (epochs, checkpoints),
``default`` (the shipped encoder's recipe).
"""
