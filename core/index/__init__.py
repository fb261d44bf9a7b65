"""Item vectors in Qdrant.

``index`` (generations and the live alias), ``provisioning`` (how a collection is made, and made
whole again), ``collection`` (reading and writing the points of one), ``conditions`` (which of them
are meant), ``browsing`` (walking through them, counting what they have in common), ``moments``
(those of items), ``rest`` (what is asked often, by plain HTTP), ``refusals`` (whose fault it
is that Qdrant refuses), ``engine`` (Qdrant embedded), ``translation`` (what that is asked),
``embedded`` (the engine behind Qdrant's REST dialect).
"""
