"""One thread for each message in hand, so that a message's way is a plain function."""

import math
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from audiofuse.core.threads import vital_thread
from audiofuse.workers.queue.pool import Job, Note
from audiofuse.workers.telemetry.names import Lane

# Seconds after the last live message for which few of the backfill's are worked on. Raised, a
# backfill gets the whole worker later; lowered, it slows down live messages that come now and then.
CALM_S = 10.0


class MessageThreads:
    """Threads that work on messages, live ones first.

    While live messages keep coming few of the backfill lane are worked on at once: each one more
    would lengthen every line that a live one stands in, for the bucket, the device, the index.
    """

    def __init__(
        self,
        size: int,
        report: Callable[[], None],
        beside_live: int | None = None,
        working: Counter[Lane] | None = None,
    ) -> None:
        """Start ``size`` threads; ``report`` is called when something has ended.

        ``beside_live`` bounds how many messages of the backfill lane they work on at once while
        live ones come. ``working`` is kept as the count of those that are worked on.
        """
        self._report = report
        self._size = size
        self._beside_live = beside_live or size
        self._changed = threading.Condition()
        self._waiting: dict[Lane, deque[Job]] = {lane: deque() for lane in Lane}
        self._working = Counter[Lane]() if working is None else working
        self._last_live = -math.inf  # a monotonic time
        self._notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        for number in range(size):
            vital_thread(f"message-{number}", self._run)

    def at_work(self) -> int:
        """Return how many messages are worked on."""
        return self._working.total()

    def take(self, job: Job) -> None:
        """Take a message in hand; never blocks."""
        with self._changed:
            if job.lane is Lane.LIVE:
                self._last_live = time.monotonic()
            self._waiting[job.lane].append(job)
            self._changed.notify()

    def begin_no_more(self) -> None:
        """Let what waits for a thread wait for ever."""
        with self._changed:
            for waiting in self._waiting.values():
                waiting.clear()

    def notes(self, patience_s: float = 0.0) -> list[Note]:
        """Return what Celery's thread has to do since the last call; wait for it if told to."""
        found: list[Note] = []
        try:
            found.append(self._notes.get(timeout=patience_s) if patience_s else self._next())
            while True:
                found.append(self._next())
        except queue.Empty:
            return found

    def _next(self) -> Note:
        return self._notes.get_nowait()

    def _run(self) -> None:
        while True:
            job = self._begin()
            job.do(self._notes.put)
            self._end(job.lane)
            self._report()

    def _begin(self) -> Job:
        with self._changed:
            self._changed.wait_for(self._startable)
            job = self._waiting[self._startable()[0]].popleft()
            self._working[job.lane] += 1
        return job

    def _startable(self) -> list[Lane]:
        """Return the lanes of which a message may be begun, the first first."""
        room = self._room() - self._working[Lane.BACKFILL]
        return [lane for lane in Lane if self._waiting[lane] and (lane is Lane.LIVE or room > 0)]

    def _room(self) -> int:
        """Return how many messages of the backfill lane may be worked on now."""
        calm = time.monotonic() - self._last_live > CALM_S
        return self._size if calm else self._beside_live

    def _end(self, lane: Lane) -> None:
        with self._changed:
            self._working[lane] -= 1
            room = max(1, self._room() - self._working[Lane.BACKFILL])
            # No more threads than there are messages: each that wakes for nothing costs a turn.
            self._changed.notify(min(room, sum(map(len, self._waiting.values()))))
