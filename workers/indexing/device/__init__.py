"""The device: one process for each host that encodes and fuses, in full batches.

In reading order: ``__main__`` the process, ``server`` who it serves, ``connection`` one of these,
``encoders`` what is loaded, ``device`` the thread that runs an encoder, ``batches`` which windows
make a batch, ``waiting`` what waits, ``cutter`` a sound's windows for moments, ``halves`` what is
done when a batch fails, ``measure`` which batches are worth their size, ``fair_lock`` by which
encoders take turns.
"""
