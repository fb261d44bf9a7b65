"""A process with all that descend of it."""

import psutil

DECODER = "audiofuse.workers.indexing.decoding.child"


def tree(pid: int, module: str = "") -> list[psutil.Process]:
    """Return a process, the first, and its descendants; or those of them that run a module."""
    first = psutil.Process(pid)
    every = [first, *first.children(recursive=True)]
    return [each for each in every if not module or module in each.cmdline()]


def memory(pid: int) -> int:
    """Return the bytes that they have, what they share counted once."""
    return sum(each.memory_full_info().pss for each in tree(pid))
