"""Item vectors in Qdrant.

``index`` (generations and the live alias), ``engine`` (Qdrant embedded), ``embedded`` (the engine
behind Qdrant's REST dialect).
"""
