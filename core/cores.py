"""How many CPUs this process may use: what the scheduler and the container's quota leave of all.

And whether a GPU may be here, which is asked before anything is imported that needs one.

``os.cpu_count()`` tells the machine's. A container of 4 CPUs on a node of 64 that starts 64 threads
has most of them wait for their share, and those that wait hold up the others.
"""

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from audiofuse.core.cgroups import groups, numbers

# What shows that a GPU may be here: NVIDIA's driver, or the device by which AMD's computes.
CUDA_DRIVER = "libcuda.so.1"
ROCM_DEVICE = Path("/dev/kfd")


def usable_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may keep busy; at least 1.

    A quota of 2.5 CPUs counts as 3. ``root`` is where ``proc`` and ``sys`` are.
    """
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cpu_quota(root))))


def cpu_quota(root: Path = Path("/")) -> float:
    """Return how many CPUs the control groups of this process grant it; infinity if none limits.

    A group has no more than those above it, so all of them are asked.
    """
    return min(
        (quota for group in groups(root, "cpu", "cpu,cpuacct") for quota in _quotas(group)),
        default=math.inf,
    )


def computing_threads(spare: int = 0) -> int:
    """Return how many threads an encoder may compute with: all CPUs less ``spare``, one at least.

    ``OMP_NUM_THREADS`` overrules that. The threads wait for each other at every layer: one that
    has to share its CPU, or is out of its container's quota, holds up all of them.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdecimal() else max(1, usable_cpus() - spare)


def may_have_gpu(device: str) -> bool:
    """Whether ``device``, a setting, may come to mean a GPU: "cuda", or "auto" where one may be.

    PyTorch calls AMD's GPUs "cuda", too. Where neither maker's is, it finds none, and need not be
    asked.
    """
    if device != "auto":
        return device == "cuda"
    if ROCM_DEVICE.exists():
        return True
    try:
        ctypes.CDLL(CUDA_DRIVER)
    except OSError:
        return False
    return True


def thread_limits(threads: int) -> dict[str, str]:
    """Return the environment variables that bound what a child's numeric libraries start."""
    return {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}


def _quotas(group: Path) -> Iterator[float]:
    """Yield the group's own quota in CPUs, of either version of control groups, if it has one."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        match [number for file in files for number in numbers(group / file)]:
            case [quota, period] if quota > 0:  # -1: no limit
                yield quota / period
