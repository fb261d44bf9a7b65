"""The supervisor, ``audiofuse worker``: starts the processes of a host, and keeps them running.

    supervisor ─┬─ device             encodes and fuses, in batches of all processes' windows
                ├─ worker-1 .. -K     Celery: each takes messages, and syncs them
                │    └─ decoders
                └─ one metrics address

What ends is started again, with back-off; what it had in hand comes again or waits. One that cannot
work as it is configured ends all, with its reason in the log. On SIGTERM the message processes
stop first, and finish in grace what they have begun; the device is the last.
"""

import logging
import math
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from audiofuse.core.cores import may_have_gpu, usable_cpus
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.workers.host import sockets
from audiofuse.workers.host.kept import Kept
from audiofuse.workers.telemetry.host import UNIX
from audiofuse.workers.telemetry.metrics import serve_host

log = logging.getLogger(__name__)

# CPUs for each process that takes messages. With a GPU most of a message's work is decoding and its
# own process's; on a CPU most is encoding. Lowered, processes wait for CPUs; raised, CPUs idle.
CPUS_EACH = {"gpu": 2, "cpu": 4}
DEVICE = "audiofuse.workers.indexing.device"
TAKER = "audiofuse.workers.host.taker"
MISCONFIGURED = 2  # exit code
# Seconds after the grace period in which message processes hand back what they hold. Raised, one
# that hangs delays the stop; lowered, it is killed before, and its messages come later.
HAND_BACK_S = 30.0


def processes_for(settings: Settings) -> int:
    """Return how many processes take messages."""
    if settings.processes is not None:
        return settings.processes
    return max(1, usable_cpus() // CPUS_EACH["gpu" if may_have_gpu(settings.device) else "cpu"])


class Supervisor:
    """Keeps a device process and some that take messages running, until told to stop."""

    def __init__(self, settings: Settings, celery_options: Sequence[str], folder: Path) -> None:
        """Start all; ``folder`` is for their sockets."""
        self._settings = settings
        self._folder = folder
        self._signals = 0
        self._code: int | None = None  # once it is to end for another reason than a signal
        self._kept: list[Kept] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        # What a handler may do safely is little, as the main thread may hold any lock: it wakes by
        # a byte that Python itself writes.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._waking, self._woken = socket.socketpair()
        for each in (self._waking, self._woken):
            each.setblocking(False)  # noqa: FBT003 - its only parameter
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        serve_host(settings, self._telling)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(folder / sockets.DEVICE))
        self._listening.listen()
        descriptor = self._listening.fileno()
        self._device = self._start(
            "device", [DEVICE, str(os.getpid()), str(descriptor)], [descriptor]
        )
        self._takers = [
            self._start(name, [TAKER, str(os.getpid()), "-n", f"{name}@%h", *celery_options])
            for name in (f"worker-{n}" for n in range(1, processes_for(settings) + 1))
        ]

    def _start(self, name: str, module: Sequence[str], descriptors: Sequence[int] = ()) -> Kept:
        count = processes_for(self._settings)
        telling = self._folder / f"{name}.metrics" if self._settings.metrics_listen else None
        own = {
            "DEVICE_SOCKET": str(self._folder / sockets.DEVICE),
            "METRICS_LISTEN": f"{UNIX}{telling}" if telling else "",
            "DECODERS": str(max(1, self._settings.decoders // count)),
            "FETCH_BYTES": str(max(1, self._settings.fetch_bytes // count)),
        }
        environment = os.environ | {PREFIX + key: value for key, value in own.items()}
        command = [sys.executable, "-m", *module]
        kept = Kept(name, command, environment, telling, descriptors)
        self._kept.append(kept)
        return kept

    def _telling(self) -> dict[str, Path]:
        """Return where each process that runs tells its metrics."""
        return {
            f"{each.name}, start {each.starts}": each.telling
            for each in self._kept
            if each.telling and each.process.poll() is None
        }

    def run(self) -> int:
        """Keep all running until told to stop; return the exit code."""
        while not self._signals and self._takers and self._code is None:
            for each in [self._device, *self._takers]:
                self._look_after(each)
            due = [each.left_s for each in (self._device, *self._takers)]
            self._wait(min((left for left in due if left is not None), default=None))
        return self._end()

    def _wait(self, seconds: float | None) -> None:
        """Wait for a signal, or for so long."""
        poll = select.poll()  # select() ends at 1,024 descriptors
        poll.register(self._woken, select.POLLIN)
        poll.poll(None if seconds is None else math.ceil(1000 * seconds))
        with suppress(BlockingIOError):
            self._woken.recv(4096)

    def _look_after(self, kept: Kept) -> None:
        """Start what ended, if it is time; decide what the end of one means for all."""
        code = kept.ended()
        if code == MISCONFIGURED:
            self._code = MISCONFIGURED
        elif code == 0 and kept in self._takers:
            self._takers.remove(kept)  # Celery was told to shut it down, over the broker
        elif kept.left_s == 0:
            kept.start_next()

    def _end(self) -> int:
        """Stop the processes that take messages, then the device."""
        grace_s = min(self._settings.grace_s, self._settings.redelivery_s) + HAND_BACK_S
        for kept in (self._takers, [self._device]):
            _stop_all(kept, grace_s)
        return self._code or 0

    def _stop(self, _: int, __: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:  # whoever asks twice does not want to wait
            for each in self._kept:
                each.process.kill()


def _stop_all(kept: Sequence[Kept], patience_s: float) -> None:
    """Ask processes to end, and end those that do not."""
    deadline = time.monotonic() + patience_s
    running = [each.process for each in kept if each.process.poll() is None]
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def supervise(settings: Settings, celery_options: Sequence[str] = ()) -> int:
    """Run a worker's processes until SIGTERM; return the exit code."""
    with sockets.socket_folder() as folder:
        return Supervisor(settings, celery_options, folder).run()
