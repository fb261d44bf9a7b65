"""CPU time and memory of a worker host and its servers, by what each process is for.

The kernel's own accounting: /proc/PID/stat, user and system time of all threads. Unlike clips a
second it hardly changes while other programs use the same cores.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import psutil

MESSAGES, DECODERS, DEVICE, SUPERVISOR = "messages", "decoders", "device", "supervisor"
# Of the host's processes: by the first pattern that is found in their command line.
ROLES = (
    (DECODERS, re.compile(r"indexing\.decoding")),
    (DEVICE, re.compile(r"indexing\.device")),
    (MESSAGES, re.compile(r"celery|workers\.host\.taker")),
    (SUPERVISOR, re.compile(r"audiofuse worker|indexing\.supervis")),
)
OTHER = "other"  # a process of the host that no pattern knows
OURS = (SUPERVISOR, MESSAGES, DECODERS, DEVICE, OTHER)  # the rest are servers


class Accounts:
    """CPU seconds by role since this was made. A process that ended counts as last looked at."""

    def __init__(self, host: int, servers: Mapping[str, int]) -> None:
        """Look at the processes ``host`` and ``servers``, by role, and all that descend of them."""
        self._host = host
        self._servers = dict(servers)
        self._before: dict[tuple[int, float], float] = {}
        self._now: dict[tuple[int, float], tuple[str, float]] = {}
        self.look()
        self._before = {process: seconds for process, (_, seconds) in self._now.items()}

    def look(self) -> None:
        """Look at all processes as they are now."""
        for role, process in self._processes():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    same = process.pid, process.create_time()
            except psutil.NoSuchProcess:
                continue
            self._now[same] = role, times.user + times.system

    def seconds(self) -> dict[str, float]:
        """Return the CPU seconds of each role up to the last look."""
        seconds: dict[str, float] = defaultdict(float)
        for process, (role, now) in self._now.items():
            seconds[role] += now - self._before.get(process, 0.0)
        return dict(seconds)

    def processes(self) -> Counter[str]:
        """Return how many processes there are now of each role."""
        return Counter(role for role, _ in self._processes())

    def host_mib(self) -> float:
        """Return the host's memory; what several of its processes share counts once."""
        bytes_ = 0
        for process in _family(self._host):
            try:
                bytes_ += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return bytes_ / 2**20

    def pin(self, cores: Collection[int]) -> None:
        """Let host and servers run on these cores only."""
        for _, process in self._processes():
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                try:
                    os.sched_setaffinity(int(thread.name), cores)
                except ProcessLookupError:
                    continue

    def _processes(self) -> Iterator[tuple[str, psutil.Process]]:
        for process in _family(self._host):
            yield _role(process), process
        for role, pid in self._servers.items():
            for process in _family(pid):
                yield role, process


def _family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def _role(process: psutil.Process) -> str:
    try:
        command = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return OTHER
    return next((role for role, pattern in ROLES if pattern.search(command)), OTHER)
