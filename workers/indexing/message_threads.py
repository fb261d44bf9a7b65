"""One thread for each message in hand, so that a message's way is a plain function."""

import logging
import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from audiofuse.core.threads import vital_thread
from audiofuse.workers.telemetry.names import Lane
from audiofuse.workers.telemetry.tracing import span

log = logging.getLogger(__name__)

# Seconds after the last live message for which few of the backfill's are worked on. Raised, a
# backfill gets the whole worker later; lowered, it slows down live messages that come now and then.
CALM_S = 10.0


@dataclass(frozen=True, eq=False)
class Delivery:
    """A message in hand: the key it names, its lane, and the broker's ``receipt`` for it.

    ``trace`` is what goes on in it; see ``tracing.py``. ``sent`` is the Unix time at which its
    change was first told of, if that is known.
    """

    key: str
    lane: Lane
    receipt: Any
    trace: Mapping[str, Any] = field(default_factory=dict)
    sent: float | None = None


@dataclass(frozen=True)
class Finished:
    """A message that nobody works on any more, and whether it may be acknowledged."""

    delivery: Delivery
    settled: bool


class MessageThreads:
    """Threads that settle messages, live ones first.

    While live messages keep coming few of the backfill lane are worked on at once: each one more
    would lengthen every line that a live one stands in, for the bucket, the device, the index.
    """

    def __init__(
        self,
        size: int,
        settle: Callable[[str, Lane, float | None], bool],
        report: Callable[[], None],
        beside_live: int | None = None,
        working: Counter[Lane] | None = None,
    ) -> None:
        """Let ``size`` threads ``settle``; ``report`` is called when something has finished.

        ``beside_live`` bounds how many messages of the backfill lane they work on at once while
        live ones come. ``working`` is kept as the count of those that are worked on.
        """
        self._settle = settle
        self._report = report
        self._size = size
        self._beside_live = beside_live or size
        self._changed = threading.Condition()
        self._waiting: dict[Lane, deque[Delivery]] = {lane: deque() for lane in Lane}
        self._working = Counter[Lane]() if working is None else working
        self._last_live = -math.inf  # a monotonic time
        self._finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._held: set[Delivery] = set()  # changed by atomic calls only
        for number in range(size):
            vital_thread(f"message-{number}", self._run)

    @property
    def held(self) -> frozenset[Delivery]:
        """What is in hand: taken, and not reported as finished."""
        return frozenset(self._held.copy())

    def in_hand(self) -> int:
        """Return how many messages are in hand."""
        return len(self._held)

    def at_work(self) -> int:
        """Return how many of them are worked on."""
        return self._working.total()

    def take(self, delivery: Delivery) -> None:
        """Take a message in hand; never blocks."""
        self._held.add(delivery)
        with self._changed:
            if delivery.lane is Lane.LIVE:
                self._last_live = time.monotonic()
            self._waiting[delivery.lane].append(delivery)
            self._changed.notify()

    def finished(self, patience_s: float = 0.0) -> list[Finished]:
        """Return what has finished since the last call; wait for the first of them if told to."""
        found: list[Finished] = []
        try:
            found.append(self._finished.get(timeout=patience_s) if patience_s else self._next())
            while True:
                found.append(self._next())
        except queue.Empty:
            return found

    def _next(self) -> Finished:
        return self._finished.get_nowait()

    def _run(self) -> None:
        while True:
            delivery = self._begin()
            with span("sync", delivery.trace, key=delivery.key, lane=delivery.lane):
                settled = self._settle(delivery.key, delivery.lane, delivery.sent)
            self._end(delivery)
            self._finished.put(Finished(delivery, settled))
            self._report()

    def _begin(self) -> Delivery:
        with self._changed:
            self._changed.wait_for(self._startable)
            delivery = self._waiting[self._startable()[0]].popleft()
            self._working[delivery.lane] += 1
        return delivery

    def _startable(self) -> list[Lane]:
        """Return the lanes of which a message may be begun, the first first."""
        room = self._room() - self._working[Lane.BACKFILL]
        return [lane for lane in Lane if self._waiting[lane] and (lane is Lane.LIVE or room > 0)]

    def _room(self) -> int:
        """Return how many messages of the backfill lane may be worked on now."""
        calm = time.monotonic() - self._last_live > CALM_S
        return self._size if calm else self._beside_live

    def _end(self, delivery: Delivery) -> None:
        with self._changed:
            self._working[delivery.lane] -= 1
            self._held.remove(delivery)
            room = max(1, self._room() - self._working[Lane.BACKFILL])
            # No more threads than there are messages: each that wakes for nothing costs a turn.
            self._changed.notify(min(room, sum(map(len, self._waiting.values()))))
