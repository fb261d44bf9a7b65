"""What was freed goes back to the system."""

import sys

import psutil
import pytest

from audiofuse.core.memory import give_back_freed

BLOCK, BLOCKS, KEPT = 60_000, 2000, 50  # bytes, each in the allocator's heap; every so many stays


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps it")
def test_freed_memory_between_what_is_in_use_goes_back() -> None:
    """What lies above it is in use, so that the allocator itself would keep it."""
    process = psutil.Process()
    blocks = [b"x" * (BLOCK + number % 2) for number in range(BLOCKS)]
    kept = blocks[::KEPT]
    del blocks
    before = process.memory_info().rss
    give_back_freed()
    assert before - process.memory_info().rss > BLOCK * BLOCKS / 2
    assert len(kept) == BLOCKS // KEPT
