"""How many CPUs this process may use: what the scheduler and the container's quota leave of all.

``os.cpu_count()`` tells the machine's. A container of 4 CPUs on a node of 64 that starts 64 threads
has most of them wait for their share, and those that wait hold up the others.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("sys/fs/cgroup")
V1_CONTROLLERS = ("cpu", "cpu,cpuacct")  # the names under which kernels mount them


def usable_cpus(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may keep busy; at least 1.

    A quota of 2.5 CPUs counts as 3. ``root`` is where ``proc`` and ``sys`` are.
    """
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cpu_quota(root))))


def cpu_quota(root: Path = Path("/")) -> float:
    """Return how many CPUs the control groups of this process grant it; infinity if none limits.

    A group has no more than those above it, so all of them are asked. Inside a container a path may
    be one that only the host sees; then those of its parts that exist are asked.
    """
    return min((quota for group in _groups(root) for quota in _quotas(group)), default=math.inf)


def thread_limits(threads: int) -> dict[str, str]:
    """Return the environment variables that bound what a child's numeric libraries start."""
    return {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, and of all groups above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:  # hierarchy:controllers:path; version 2 names no controllers
        _, controllers, path = line.split(":", 2)
        mounts = [CGROUPS / name for name in V1_CONTROLLERS] if controllers else [CGROUPS]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in mounts:
            group = root / mount / path.lstrip("/")
            yield from (
                each for each in (group, *group.parents) if each.is_relative_to(root / mount)
            )


def _quotas(group: Path) -> Iterator[float]:
    """Yield the group's own quota in CPUs, of either version of control groups, if it has one."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        match [number for file in files for number in _numbers(group / file)]:
            case [quota, period] if quota > 0:  # -1: no limit
                yield quota / period


def _numbers(path: Path) -> list[int]:
    """Return the numbers in a file, in microseconds; none where it is absent or says ``max``."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
