"""A process with all that descend of it."""

import psutil


def tree(pid: int) -> list[psutil.Process]:
    """Return a process, the first, and its descendants."""
    first = psutil.Process(pid)
    return [first, *first.children(recursive=True)]


def memory(pid: int) -> int:
    """Return the bytes that they have, what they share counted once."""
    return sum(each.memory_full_info().pss for each in tree(pid))
