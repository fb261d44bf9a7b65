"""What becomes of a message: an error's class decides (``core/errors.py``).

synced ──────────────> acknowledge
Rejected ────────────> dead letter, acknowledge
Unavailable ─────────> again after a while; for long: to the end of its lane
anything else, a bug > again, three times in all; then dead letter, acknowledge
the worker stops ────> hand back
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping

from redis import RedisError

from core.audio import Samples
from core.errors import Reason, Rejected, Unavailable
from core.items import describes, is_audio, sidecar_keys, sidecar_stem
from workers.broker import Dispatcher, Lane
from workers.dead_letters import DeadLetters, Deliveries
from workers.sync import Guard, Outcome, Synced, Syncer

log = logging.getLogger(__name__)

MAX_DELIVERIES = 3
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 32.0
TRIES_IN_HAND = 6  # a minute; then others get the message's place in the worker


class Fates:
    """Works on messages, in many threads, and tells which may be acknowledged."""

    def __init__(
        self,
        syncers: Mapping[Lane, Syncer],
        dead_letters: DeadLetters,
        dispatcher: Dispatcher,
        stopping: threading.Event,
    ) -> None:
        """Sync with the ``syncers`` of each lane until the worker is ``stopping``."""
        self._syncers = syncers
        self._dead_letters = dead_letters
        self._dispatcher = dispatcher
        self._stopping = stopping
        self._locks = KeyLocks()

    def settle(self, key: str, lane: Lane) -> bool:
        """Do what a message asks for; false if it must be handed back, because the worker stops."""
        tries = 0
        while not self._stopping.is_set():
            try:
                if tries < TRIES_IN_HAND:
                    self._settle(key, lane)
                else:
                    self._dispatcher.sync(key, lane)
            except (Unavailable, RedisError) as error:
                backoff_s = min(FIRST_BACKOFF_S * 2**tries, MAX_BACKOFF_S)
                log.warning("%s: again in %.0f s, %s", key, backoff_s, error)
                self._stopping.wait(backoff_s)
                tries += 1
            else:
                return True
        return False

    def _settle(self, key: str, lane: Lane) -> None:
        """Sync one key; a sidecar's key stands for the audio objects it may describe."""
        syncer = self._syncers[lane]
        if is_audio(key):
            self._sync(key, syncer)
            return
        for found in syncer.store.list(sidecar_stem(key) + "."):
            if describes(key, found.key):
                self._sync(found.key, syncer)

    def _sync(self, key: str, syncer: Syncer) -> None:
        with self._locks.alone(key):
            for delivery in range(1, MAX_DELIVERIES + 1):
                bug = self._attempt(key, syncer)
                if not bug:
                    return
                log.error("%s: a bug, delivery %d of %d", key, delivery, MAX_DELIVERIES)
            self._give_up(key, bug, syncer)

    def _attempt(self, key: str, syncer: Syncer) -> str:
        """Sync once and record the outcome; return what bug that met, or nothing."""
        started = time.monotonic()
        try:
            synced = syncer.sync(key)
        except Rejected as verdict:
            log.warning("%s: rejected, %s", key, verdict)
            self._dead_letters.add(key, verdict)
        except (Unavailable, RedisError):
            raise
        except Exception as error:
            log.exception("%s: %s", key, type(error).__name__)
            return f"{type(error).__name__}: {error}"
        else:
            log.info("%s: %s in %.3f s", key, synced.outcome, time.monotonic() - started)
            self._record(key, synced)
        return ""

    def _give_up(self, key: str, detail: str, syncer: Syncer) -> None:
        log.error("%s: given up, %s", key, detail)
        verdict = Rejected(Reason.BUG, detail)
        with contextlib.suppress(Unavailable):  # then reconcile gives the object another chance
            info = syncer.store.head(key)
            verdict.etag = info.etag if info else ""
        self._dead_letters.add(key, verdict)

    def _record(self, key: str, synced: Synced) -> None:
        """Replace what was known to be wrong with this item; an unchanged one keeps its letters."""
        if synced.outcome is Outcome.UNCHANGED:
            return
        self._dead_letters.clear([key, *sidecar_keys(key)])
        for problem_key, problem in synced.problems.items():
            log.warning("%s: %s; the audio is indexed without it", problem_key, problem)
            self._dead_letters.add(problem_key, problem)


class KeyLocks:
    """Lets one thread at a time work on a key."""

    def __init__(self) -> None:
        """Begin with no key in work."""
        self._changed = threading.Condition()
        self._busy: set[str] = set()

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Wait until nobody works on ``key``, then keep others from it."""
        with self._changed:
            self._changed.wait_for(lambda: key not in self._busy)
            self._busy.add(key)
        try:
            yield
        finally:
            with self._changed:
                self._busy.remove(key)
                self._changed.notify_all()


def quarantine(deliveries: Deliveries) -> Guard:
    """Return a guard that counts, under an object's key, decodings that ended with their worker.

    It counts only while a sound is decoded: else all that a killed worker had in hand would be
    suspect.
    """

    def guarded(key: str, windows: Iterator[Samples]) -> Iterator[Samples]:
        delivery = deliveries.begin(key)  # counted first: the decoding may kill this process
        try:
            if delivery > MAX_DELIVERIES:
                detail = f"its worker died {MAX_DELIVERIES} times while decoding it"
                raise Rejected(Reason.BUG, detail)
            yield from windows
        finally:
            deliveries.finish(key)

    return guarded
