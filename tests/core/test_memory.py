"""What is used of what is allowed; and what was freed goes back to the system."""

import gc
import math
import os
import sys
from importlib import import_module
from pathlib import Path

import psutil
import pytest

from audiofuse.core.memory import give_back_freed, importing, memory_limit, memory_used

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


def _kernel_tells(root: Path, cgroup: str, **files: str) -> Path:
    """Lay out what the kernel would show of the group at ``/a``."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    mount = root / "sys/fs/cgroup" / ("" if cgroup.startswith("0::") else "memory")
    (mount / "a").mkdir(parents=True)
    for name, content in files.items():
        (mount / "a" / f"memory.{name}").write_text(content)
    (mount / "memory.max").write_text("max\n")  # of the group above
    return root


V2 = {"current": "900\n", "max": "1000\n", "stat": "anon 500\ninactive_file 300\n"}
V1 = {"usage_in_bytes": "900\n", "limit_in_bytes": "1000\n", "stat": "total_inactive_file 300\n"}


@pytest.mark.parametrize(("cgroup", "files"), [("0::/a\n", V2), ("9:memory:/a\n", V1)])
def test_files_that_are_merely_cached_are_not_needed(
    tmp_path: Path, cgroup: str, files: dict[str, str]
) -> None:
    """Both versions of control groups tell use and limit; what can be dropped is no use."""
    root = _kernel_tells(tmp_path, cgroup, **files)
    assert (memory_used(root), memory_limit(root)) == (600, 1000)


def test_without_a_limit_the_machine_is_one(tmp_path: Path) -> None:
    """Nobody has more memory than there is, whatever a kernel says for "no limit"."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    root = _kernel_tells(tmp_path, "9:memory:/a\n", limit_in_bytes="9223372036854771712\n")
    assert memory_limit(root) == machine
    assert math.isnan(memory_used(root))


def test_what_imports_made_is_not_looked_through() -> None:
    """While much is imported no garbage is looked for, and later not among what was imported."""
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]  # type: ignore[var-annotated]
    assert gc.isenabled()
    assert gc.get_freeze_count() - before > len(made)


def test_after_an_import_that_fails_garbage_is_looked_for_again() -> None:
    """What is missing, as a package of an extra, ends a command, but not the looking."""
    with pytest.raises(ModuleNotFoundError), importing():
        import_module("no_such_package")
    assert gc.isenabled()
