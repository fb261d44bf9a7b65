"""What becomes of a message: an error's class decides (``core/errors.py``).

synced ──────────────> acknowledge
Rejected ────────────> dead letter (recorded by sync), acknowledge
Unavailable ─────────> again after a while; for long: to the end of its lane
anything else, a bug > again, three times in all; then dead letter, acknowledge
the worker stops ────> hand back

Messages about a key that somebody works on wait for one turn together: whoever takes it looks at
the bucket after all of them came, and so for all of them.

A write that seemed to fail, because the answer did not come in time, may still be waiting in a
server that was stalled, and come after the write that made up for it. So what succeeded only after
something was away is looked at once more, a while later.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Protocol

from redis import RedisError

from audiofuse.core.audio.recording import Samples
from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.items import is_audio
from audiofuse.core.storage.store import Store
from audiofuse.workers.indexing.sync import Guard, Letters, Synced, sounds_of
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.queue.deliveries import Deliveries
from audiofuse.workers.telemetry.logs import bound
from audiofuse.workers.telemetry.metrics import SYNCS, searchable
from audiofuse.workers.telemetry.names import Lane
from audiofuse.workers.telemetry.tracing import annotate

log = logging.getLogger(__name__)

MAX_DELIVERIES = 3
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 32.0
TRIES_IN_HAND = 6  # a minute; then others get the message's place in the worker
LATE_WRITE_S = 2.0  # how long a server that answers again may have writes of before in its queue


class Syncing(Protocol):
    """What syncs: a ``Syncer``, or one for every version."""

    @property
    def store(self) -> Store:
        """The bucket."""

    @property
    def letters(self) -> Letters:
        """Where verdicts are recorded."""

    def sync(self, key: str) -> Synced:
        """See ``Syncer``."""

    def give_up(self, key: str, verdict: Rejected) -> None:
        """See ``Syncer``."""


class RetryPolicy:
    """Works on messages, in many threads, and tells which may be acknowledged."""

    def __init__(
        self, syncers: Mapping[Lane, Syncing], dispatcher: Dispatcher, stopping: threading.Event
    ) -> None:
        """Sync with the ``syncers`` of each lane until the worker is ``stopping``."""
        self._syncers = syncers
        self._dispatcher = dispatcher
        self._stopping = stopping
        self._turns = SingleFlight()

    def settle(self, key: str, lane: Lane) -> bool:
        """Do what a message asks for; false if it must be handed back, because the worker stops."""
        tries, pause_s = 0, 0.0
        while not self._stopping.wait(pause_s):
            try:
                if tries < TRIES_IN_HAND:
                    with bound(key=key, lane=lane):
                        self._settle(key, lane)
                else:
                    self._dispatcher.sync(key, lane)
            except (Unavailable, RedisError) as error:
                pause_s = min(FIRST_BACKOFF_S * 2**tries, MAX_BACKOFF_S)
                tries += 1
                if not self._stopping.is_set():
                    log.warning("%s: again in %.0f s, %s", key, pause_s, error)
            else:
                if not 0 < tries < TRIES_IN_HAND:
                    return True
                tries, pause_s = 0, LATE_WRITE_S
        return False

    def _settle(self, key: str, lane: Lane) -> None:
        """Sync a sound; have those synced that a sidecar may describe.

        Each by a message of its own: delivered again, the sidecar's would not name a sound that
        was written and is gone meanwhile.
        """
        syncer = self._syncers[lane]
        if is_audio(key):
            self._turns.take(key, partial(self._sync, key, lane))
            return
        for sound in sounds_of(syncer.store, key):
            self._dispatcher.sync(sound, lane)

    def _sync(self, key: str, lane: Lane) -> None:
        if self._stopping.is_set():
            raise Unavailable("the worker stops")
        for delivery in range(1, MAX_DELIVERIES + 1):
            bug = self._attempt(key, lane)
            if not bug:
                return
            log.error("%s: a bug, delivery %d of %d", key, delivery, MAX_DELIVERIES)
        log.error("%s: given up, %s", key, bug)
        self._give_up(key, Rejected(Reason.BUG, bug), self._syncers[lane])

    def _attempt(self, key: str, lane: Lane) -> str:
        """Sync once; return what bug that met, or nothing."""
        started = time.monotonic()
        try:
            synced = self._syncers[lane].sync(key)
        except Rejected as verdict:
            SYNCS.labels(lane, "rejected").inc()
            log.warning("%s: rejected, %s", key, verdict, extra={"outcome": "rejected"})
        except (Unavailable, RedisError):
            SYNCS.labels(lane, "unavailable").inc()
            raise
        except Exception as error:
            SYNCS.labels(lane, "bug").inc()
            log.exception("%s: %s", key, type(error).__name__)
            return f"{type(error).__name__}: {error}"
        else:
            SYNCS.labels(lane, synced.outcome).inc()
            if synced.age_s is not None:
                searchable(lane, synced.age_s)
            _log(key, synced, time.monotonic() - started)
        return ""

    def _give_up(self, key: str, verdict: Rejected, syncer: Syncing) -> None:
        try:
            syncer.give_up(key, verdict)
        except (Unavailable, RedisError):
            raise
        except Exception:
            log.exception("%s: it is as it was in the index: not even that can be changed", key)
            syncer.letters.add(key, verdict)


def _log(key: str, synced: Synced, seconds: float) -> None:
    """Log what became of an item, in one line."""
    level = logging.WARNING if synced.problems else logging.INFO
    problems = "".join(
        f"; {sidecar}: {problem}; the audio is indexed without it"
        for sidecar, problem in synced.problems.items()
    )
    annotate(outcome=synced.outcome)
    about = {"outcome": synced.outcome.value, "seconds": round(seconds, 3)}
    log.log(level, "%s: %s in %.3f s%s", key, synced.outcome, seconds, problems, extra=about)


class SingleFlight:
    """Lets one thread at a time work on a key; those that wait for it share the next turn."""

    def __init__(self) -> None:
        """Begin with no key in work."""
        self._lock = threading.Lock()
        self._now: dict[str, Future[None]] = {}
        self._next: dict[str, Future[None]] = {}

    def take(self, key: str, work: Callable[[], None]) -> None:
        """Wait until nobody works on ``key``, then work; or share the turn of one that waits.

        What the work raises all of them raise.
        """
        with self._lock:
            shared = self._next.get(key)
            before = self._now.get(key)
            turn: Future[None] = Future()
            if shared is None:
                (self._next if before else self._now)[key] = turn
        if shared:
            shared.result()
            return
        if before:
            wait([before])
        try:
            work()
        except BaseException as error:
            self._end(key)
            turn.set_exception(error)
            raise
        self._end(key)
        turn.set_result(None)

    def _end(self, key: str) -> None:
        """Let the next have its turn; from here on nobody joins it: it may look at once."""
        with self._lock:
            del self._now[key]
            if key in self._next:
                self._now[key] = self._next.pop(key)


def quarantine(deliveries: Deliveries) -> Guard:
    """Return a guard that counts, under an object's key, decodings that ended with their worker.

    It counts only while a sound is decoded: else all that a killed worker had in hand would be
    suspect.
    """

    def guarded(key: str, windows: Iterator[Samples]) -> Iterator[Samples]:
        delivery = deliveries.begin(key)  # counted first: the decoding may kill this process
        try:
            if delivery.deaths >= MAX_DELIVERIES:
                deliveries.forget(key)
                detail = f"its worker died {MAX_DELIVERIES} times while decoding it"
                raise Rejected(Reason.BUG, detail)
            yield from windows
        finally:
            deliveries.finish(key, delivery.tag)

    return guarded
