"""What becomes of a message: an error's class decides (``core/errors.py``).

synced ──────────────> acknowledge
Rejected ────────────> dead letter (recorded by sync), acknowledge
Unavailable ─────────> again after a while; for long: to the end of its lane
anything else, a bug > again, three times in all; then dead letter, acknowledge;
                       but if object after object meets the same one: as unavailable
the worker stops ────> hand back

Messages about a key that somebody works on wait together, and then one of them is worked on for
all: it looks at the bucket after all of them came.

A write that seemed to fail, because the answer did not come in time, may still be waiting in a
server that was stalled, and come after the write that made up for it. So what succeeded only after
something was away is looked at once more, a while later.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Generic, Protocol, TypeVar

from redis import RedisError

from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.items import is_audio
from audiofuse.core.storage.store import Store
from audiofuse.workers.indexing.breaker import Breaker, Causes, Seats
from audiofuse.workers.indexing.items.collaborators import DeadLetterStore, NoReport, Report
from audiofuse.workers.indexing.items.sync import Synced, sounds_of
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.queue.deliveries import Deliveries
from audiofuse.workers.telemetry.logs import bound
from audiofuse.workers.telemetry.metrics import SYNCS, searchable
from audiofuse.workers.telemetry.names import Lane, Outcome
from audiofuse.workers.telemetry.tracing import annotate

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_DELIVERIES = 3  # raised, a bug costs more work before the object is given up
# Seconds between two tries of what met a bug: time in which it shows whether others meet it, too.
# Lowered, good objects may be given up before an outage is known to be one.
BUG_PAUSE_S = 1.0
# Seconds between the first two tries of what is away, and the most between any two. Raised, work
# goes on later once it is back; lowered, it is asked more often while it struggles.
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 32.0
TRIES_IN_HAND = 6  # a minute; then others get the message's place in the worker
# Seconds for which a server that answers again may have writes of before in its queue. Lowered, one
# that comes later stays; raised, a message keeps its place longer after something was away.
LATE_WRITE_S = 2.0
WRITTEN = {Outcome.CREATED, Outcome.UPDATED, Outcome.REFUSED, Outcome.REMOVED}  # so it all works


class Syncing(Protocol):
    """What syncs: a ``Syncer``, or one for every version."""

    @property
    def store(self) -> Store:
        """The bucket."""

    @property
    def letters(self) -> DeadLetterStore:
        """Where verdicts are recorded."""

    def sync(self, key: str) -> Synced:
        """See ``Syncer``."""

    def give_up(self, key: str, verdict: Rejected) -> None:
        """See ``Syncer``."""


class RetryPolicy:
    """Works on messages, in many threads, and tells which may be acknowledged."""

    def __init__(  # noqa: PLR0913, PLR0917 - what is done, and all that watches and bounds it
        self,
        syncers: Mapping[Lane, Syncing],
        dispatcher: Dispatcher,
        stopping: threading.Event,
        watched: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
        report: Report | None = None,
        seats: Seats | None = None,
    ) -> None:
        """Sync with the ``syncers`` of each lane until the worker is ``stopping``.

        Each try is made within ``watched(key)``; what is waited for goes to ``report``. Where no
        more may wait for one of several buckets, its messages go to the end of their lane.
        """
        self._seats = seats or Seats()
        self._report = report or NoReport()
        self._watched = watched
        self._syncers = syncers
        self._dispatcher = dispatcher
        self._stopping = stopping
        self._single_flight = SingleFlight[Outcome]()
        self._breaker = Breaker(self._take_back)
        self._causes = Causes()

    def settle(self, key: str, lane: Lane, sent: float | None = None) -> Outcome | None:
        """Do what a message asks for; none if it must be handed back, because the worker stops.

        ``sent`` is the Unix time at which its change was first told of.
        """
        with ExitStack() as seat:
            return self._settle(key, lane, sent, seat)

    def _settle(self, key: str, lane: Lane, sent: float | None, seat: ExitStack) -> Outcome | None:
        tries, pause_s = 0, 0.0
        if self._seats.are_taken(key):
            tries, pause_s = TRIES_IN_HAND, FIRST_BACKOFF_S
        outcome: Outcome | None = None
        while not self._stopping.wait(pause_s):
            try:
                if tries < TRIES_IN_HAND:
                    with bound(key=key, lane=lane), self._watched(key):
                        found = self._work(key, lane)
                else:
                    self._dispatcher.sync(key, lane, sent)
                    found = Outcome.LATER
            except (Unavailable, RedisError) as error:
                if not tries:
                    seat.pop_all().close()
                    seat.enter_context(self._seats.taken(key))
                pause_s = min(FIRST_BACKOFF_S * 2**tries, MAX_BACKOFF_S)
                tries += 1
                if not self._stopping.is_set():
                    self._report.meets(error)
                    self._causes.met(key, error, pause_s)
            else:
                if outcome in {None, Outcome.UNCHANGED}:  # as when it is looked at once more
                    outcome = found
                if not 0 < tries < TRIES_IN_HAND:
                    return outcome
                tries, pause_s = 0, LATE_WRITE_S
        return None

    def _work(self, key: str, lane: Lane) -> Outcome:
        """Sync a sound; of messages about it that wait at the same time one does it for all."""
        if is_audio(key):
            work = partial(self._sync, key, lane)
            return self._single_flight.take(key, lambda: self._try(key, lane, work))
        return self._try(key, lane, partial(self._sync_sounds_of, key, lane))

    def _sync_sounds_of(self, sidecar: str, lane: Lane) -> Outcome:
        """Have the sounds synced that a sidecar may describe.

        Each by a message of its own: delivered again, the sidecar's would not name a sound that
        was written and is gone meanwhile.
        """
        for sound in sounds_of(self._syncers[lane].store, sidecar):
            self._dispatcher.sync(sound, lane)
        return Outcome.LATER

    def _try(self, key: str, lane: Lane, work: Callable[[], Outcome]) -> Outcome:
        """Work; three bugs cost the object its place in the index, unless they are an outage."""
        pause_s = 0.0
        for attempt in range(1, MAX_DELIVERIES + 1):
            if self._stopping.wait(pause_s):
                raise Unavailable("the worker stops")
            try:
                return work()
            except (Unavailable, RedisError):
                raise
            except Exception as error:
                SYNCS.labels(lane, "bug").inc()
                if self._breaker.failed(key, error):
                    why = f"object after object meets one error, see the log: {_named(error)}"
                    raise Unavailable(why) from error
                log.exception("%s: a bug, delivery %d of %d", key, attempt, MAX_DELIVERIES)
                bug = _named(error)
                pause_s = BUG_PAUSE_S
        log.error("%s: given up, %s", key, bug)
        self._give_up(key, Rejected(Reason.BUG, bug), self._syncers[lane])
        return Outcome.REJECTED

    def _sync(self, key: str, lane: Lane) -> Outcome:
        """Sync a sound once, and count and log what came of it."""
        started = time.monotonic()
        try:
            synced = self._syncers[lane].sync(key)
        except Rejected as verdict:
            SYNCS.labels(lane, "rejected").inc()
            log.warning("%s: rejected, %s", key, verdict, extra={"outcome": "rejected"})
            return Outcome.REJECTED
        except (Unavailable, RedisError):
            SYNCS.labels(lane, "unavailable").inc()
            raise
        SYNCS.labels(lane, synced.outcome).inc()
        if synced.outcome in WRITTEN:
            self._breaker.passed()
            self._report.works()
            self._causes.passed()
        if synced.age_s is not None:
            searchable(lane, synced.age_s)
        _log(key, synced, time.monotonic() - started)
        return synced.outcome

    def _give_up(self, key: str, verdict: Rejected, syncer: Syncing) -> None:
        if not is_audio(key):  # a sidecar's message has no point, only the sounds' messages do
            syncer.letters.add(key, verdict)
            return
        try:
            syncer.give_up(key, verdict)
        except (Unavailable, RedisError):
            raise
        except Exception:
            log.exception("%s: it is as it was in the index: not even that can be changed", key)
            syncer.letters.add(key, verdict)

    def _take_back(self, keys: Collection[str]) -> None:
        take_back(self._syncers[Lane.BACKFILL].letters, self._dispatcher, Reason.BUG, keys)


def take_back(
    letters: DeadLetterStore, dispatcher: Dispatcher, reason: Reason, keys: Collection[str]
) -> None:
    """Try anew what was given up for a ``reason`` before everything was known to fail alike."""
    given_up = [key for key, each in letters.get(keys).items() if each.reason is reason]
    for key in given_up:
        dispatcher.sync(key, Lane.BACKFILL)
    letters.clear(given_up)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


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


class SingleFlight(Generic[T]):
    """Lets one thread at a time work on a key; those that wait for it share the next turn."""

    def __init__(self) -> None:
        """Begin with no key in work."""
        self._lock = threading.Lock()
        self._now: dict[str, Future[T]] = {}
        self._next: dict[str, Future[T]] = {}

    def take(self, key: str, work: Callable[[], T]) -> T:
        """Wait until nobody works on ``key``, then work; or share the turn of one that waits.

        What the work returns, or raises, all of them return, or raise.
        """
        with self._lock:
            shared = self._next.get(key)
            before = self._now.get(key)
            turn: Future[T] = Future()
            if shared is None:
                (self._next if before else self._now)[key] = turn
        if shared:
            return shared.result()
        if before:
            wait([before])
        try:
            result = work()
        except BaseException as error:
            self._end(key)
            turn.set_exception(error)
            raise
        self._end(key)
        turn.set_result(result)
        return result

    def _end(self, key: str) -> None:
        """Let the next have its turn; from here on nobody joins it: it may look at once."""
        with self._lock:
            del self._now[key]
            if key in self._next:
                self._now[key] = self._next.pop(key)


@contextmanager
def counted(deliveries: Deliveries, key: str) -> Iterator[None]:
    """Count, under an object's key, steps of its decoding that ended with their worker.

    Only while a window is decoded: else all that a killed worker had in hand would be suspect, and
    a recording of hours, of which something is nearly always in hand.

    Raises ``Rejected`` if too many did, and ``Unavailable`` while they cannot be counted.
    """
    try:
        delivery = deliveries.begin(key)  # counted first: the decoding may kill this process
        try:
            if delivery.deaths >= MAX_DELIVERIES:
                deliveries.forget(key)
                detail = f"its worker died {MAX_DELIVERIES} times while decoding it"
                raise Rejected(Reason.BUG, detail)
            yield
        finally:
            deliveries.finish(key, delivery.tag)
    except RedisError as error:
        raise Unavailable(f"the broker is away: {error}") from error
