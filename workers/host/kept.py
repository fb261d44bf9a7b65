"""A process that is kept running: started again after it ended, with back-off."""

import logging
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

# Seconds before a process that ended is started again: doubled each time, until it has run for
# ``WELL_S``. Raised, one that recovers is back later; lowered, one that cannot start costs more.
FIRST_S, MOST_S, WELL_S = 1.0, 32.0, 60.0


class Kept:
    """One process, and the next in its place."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        telling: Path | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        """Start it; ``telling`` is where it tells its metrics, ``descriptors`` it inherits.

        Called by the main thread only: Linux ends a process with the thread that started it.
        """
        self.name = name
        self.telling = telling
        self.starts = 0
        self._command = command
        self._environment = dict(environment)
        self._descriptors = descriptors
        self._pause_s = FIRST_S
        self._due = 0.0  # a monotonic time at which it is started again
        self._start()

    def start_next(self) -> None:
        """Start the next in its place, if that can be done now."""
        try:
            self._start()
        except OSError as error:  # no process can be had
            log.warning("%s is not started: %s", self.name, error)
            self._back_off()

    def _start(self) -> None:
        # In a group of its own: a Ctrl-C is the supervisor's to act on.
        self.process = subprocess.Popen(  # noqa: S603 - ourselves
            self._command, env=self._environment, pass_fds=self._descriptors,
            stdin=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip
        self.starts += 1
        self._started = time.monotonic()
        self._is_known = False  # that it has ended

    def ended(self) -> int | None:
        """Return the exit code of a process that has ended, once; say when the next is due."""
        code = self.process.poll()
        if code is None or self._is_known:
            return None
        self._is_known = True
        log.warning("%s ended with code %d", self.name, code)
        if time.monotonic() - self._started > WELL_S:
            self._pause_s = FIRST_S
        self._back_off()
        return code

    def _back_off(self) -> None:
        self._due = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, MOST_S)

    @property
    def left_s(self) -> float | None:
        """In how many seconds the next is due, if one is."""
        return max(0.0, self._due - time.monotonic()) if self._is_known else None
