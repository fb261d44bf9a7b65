"""Memory that this process freed, given back to the system."""

import ctypes


def give_back_freed() -> None:
    """Have the allocator give back what is free; nothing where it has no such call.

    glibc keeps what was freed for the thread arena that had it, and gives back the top of its heap
    only; ``malloc_trim`` (its manual page) gives back every whole page between.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
