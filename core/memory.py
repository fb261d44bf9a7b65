"""Memory: what a control group uses of what it may, what was freed, and what stays for good."""

import ctypes
import gc
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audiofuse.core.cgroups import groups, numbers

USED = ("memory.current", "memory.usage_in_bytes")  # of either version of control groups
LIMITS = ("memory.max", "memory.limit_in_bytes")
IDLE_FILES = ("inactive_file", "total_inactive_file")  # cached, and dropped before anything fails


def memory_used(root: Path = Path("/")) -> float:
    """Return the bytes that this process's control group needs; NaN where the kernel tells none.

    All processes in it are counted, children and memory file systems too, and of cached files those
    that are in use. ``root`` is where ``proc`` and ``sys`` are.
    """
    for group in groups(root, "memory"):
        for name in USED:
            if used := numbers(group / name):
                return float(used[0] - _idle_files(group))
    return math.nan


def memory_limit(root: Path = Path("/")) -> float:
    """Return the bytes that it may have: by its group, those above it, and the machine."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    above = (group / name for group in groups(root, "memory") for name in LIMITS)
    return float(min([machine, *(limit for path in above for limit in numbers(path))]))


def _idle_files(group: Path) -> int:
    lines = (group / "memory.stat").read_text().splitlines()
    stat = dict(line.split(" ", 1) for line in lines)
    return max(int(stat.get(name, 0)) for name in IDLE_FILES)


def give_back_freed() -> None:
    """Have the allocator give back what is free; nothing where it has no such call.

    glibc keeps what was freed for the thread arena that had it, and gives back the top of its heap
    only; ``malloc_trim`` (its manual page) gives back every whole page between.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage while much is imported, and later not among what was.

    What imports make stays. To look through it again and again is a fifth of a process's start, and
    each full look later would hold up whatever the process does.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
