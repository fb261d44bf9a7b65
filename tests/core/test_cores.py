"""How many CPUs there are to use: what the scheduler and the container's quota leave."""

import math
import os
from pathlib import Path

import pytest

from audiofuse.core.cores import cpu_quota, thread_limits, usable_cpus
from audiofuse.core.settings import Settings


def _machine(root: Path, cgroup: str, **files: str) -> Path:
    """Lay out what the kernel would show; names of ``files`` are paths with __ for /."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/\n", {}, math.inf),
        ("0::/\n", {"cpu_dot_max": "max 100000\n"}, math.inf),
        ("0::/\n", {"cpu_dot_max": "250000 100000\n"}, 2.5),
        ("0::/a/b\n", {"a__b__cpu_dot_max": "max 100000\n", "a__cpu_dot_max": "50000 100000"}, 0.5),
        ("0::/pod/only/the/host/sees\n", {"cpu_dot_max": "400000 100000\n"}, 4),
        ("4:cpu,cpuacct:/a\n1:name=systemd:/\n", {
            "cpu__a__cpu_dot_cfs_quota_us": "150000", "cpu__a__cpu_dot_cfs_period_us": "50000",
        }, 3),
        ("4:cpuacct,cpu:/\n", {
            "cpu,cpuacct__cpu_dot_cfs_quota_us": "-1",
            "cpu,cpuacct__cpu_dot_cfs_period_us": "100000",
        }, math.inf),
        ("4:cpuset:/a\n", {
            "cpu__a__cpu_dot_cfs_quota_us": "1", "cpu__a__cpu_dot_cfs_period_us": "1",
        }, math.inf),
    ],
)  # fmt: skip
def test_reads_the_quota(tmp_path: Path, cgroup: str, files: dict[str, str], quota: float) -> None:
    """Both versions of control groups are read, those above the process's own too."""
    assert cpu_quota(_machine(tmp_path, cgroup, **files)) == quota


def test_no_control_groups_are_no_limit(tmp_path: Path) -> None:
    """Where the kernel tells nothing, nothing limits."""
    assert cpu_quota(tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "usable"), [("1", 1), ("250000", 3), ("6400000", 8)])
def test_uses_what_quota_and_affinity_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, usable: int
) -> None:
    """The smaller of both counts, a part of a CPU as one, and never none."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    root = _machine(tmp_path, "0::/\n", cpu_dot_max=f"{quota} 100000\n")
    assert usable_cpus(root) == usable


def test_as_many_decoders_as_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the setting a worker starts a decoding process for each CPU that it may use."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert Settings().decoders == usable_cpus() <= len(os.sched_getaffinity(0))


def test_limits_both_libraries() -> None:
    """OpenMP's threads and OpenBLAS's are bounded."""
    assert thread_limits(1) == {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
