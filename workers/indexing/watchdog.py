"""The watchdog: what takes longer than its bound ends the process, with a reason.

A thread that waits for what never comes keeps its message, and the worker says to the broker that
it works on it, for ever. A consumer that hangs takes none, while the process looks well from
outside. A process that ends is started again, and its messages come again.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from audiofuse.core.threads import end_process

log = logging.getLogger(__name__)

LOOK_S = 5.0  # seconds between two looks; raised, a hang is noticed so much later
MARGIN_S = 3600.0  # what a message may wait for others besides; raised, a hang lasts longer
SLOWEST_BYTES_S = 1e6  # of a download; lowered, one that hangs is noticed later
CALL_S = 300.0  # what one call of the index may take, repetitions included
# For which messages may wait although the worker takes none. Lowered, a broker that is slow to hand
# them out costs a start; raised, a consumer that hangs is noticed later.
STARVED_S = 300.0


def message_bound_s(max_duration_s: float) -> float:
    """Return how long a message may be worked on: twice its sound's longest time, and a margin."""
    return 2 * max_duration_s + MARGIN_S


def fetch_bound_s(size: int) -> float:
    """Return how long ``size`` bytes may take to be downloaded."""
    return CALL_S + size / SLOWEST_BYTES_S


@dataclass(frozen=True, eq=False)
class Step:
    """What a thread does since ``began``, a monotonic time."""

    what: str
    began: float
    bound_s: float


class Watchdog:
    """Knows what is in hand, and for how long it may be."""

    def __init__(self, end: Callable[[], NoReturn] = end_process) -> None:
        """Watch nothing yet; ``end`` ends the process."""
        self._end = end
        self._lock = threading.Lock()
        self._steps: set[Step] = set()

    @contextmanager
    def step(self, what: str, bound_s: float) -> Iterator[None]:
        """Watch what is done in it; it may take ``bound_s`` seconds."""
        step = Step(what, time.monotonic(), bound_s)
        with self._lock:
            self._steps.add(step)
        try:
            yield
        finally:
            with self._lock:
                self._steps.remove(step)

    def look(self) -> None:
        """End the process if anything takes too long."""
        now = time.monotonic()
        with self._lock:
            late = [step for step in self._steps if now - step.began > step.bound_s]
        for step in late:
            log.critical(
                "%s takes longer than %.0f s: it hangs, and the worker ends",
                step.what, step.bound_s,
            )  # fmt: skip
        if late:
            self._end()

    def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            time.sleep(LOOK_S)
            self.look()


class Consumption:
    """Notices that messages wait and none is taken, or that who takes them stands still."""

    def __init__(self, end: Callable[[], NoReturn] = end_process) -> None:
        """Take the worker for well until it is seen otherwise; ``end`` ends the process."""
        self._end = end
        self.goes_on()
        self.turns()

    def goes_on(self) -> None:
        """Know that a message was taken, or that none could be."""
        self._well = time.monotonic()

    def turns(self) -> None:
        """Know that Celery's loop went round, or that it could not."""
        self._turned = time.monotonic()

    def look(self, waiting: int, in_hand: int) -> None:
        """End the process if messages have been waiting for it, with none in hand, for too long.

        Or if Celery's loop stands still, which takes them and acknowledges what is done.
        """
        if (still_s := time.monotonic() - self._turned) > STARVED_S:
            log.critical("Celery's loop stands still for %.0f s: the worker ends", still_s)
            self._end()
        if in_hand or not waiting:
            self.goes_on()
        elif time.monotonic() - self._well > STARVED_S:
            log.critical(
                "%d messages wait, and for %.0f s none was taken: the worker ends",
                waiting, STARVED_S,
            )  # fmt: skip
            self._end()
