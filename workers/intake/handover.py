"""Intake: what every event source shares. No torch is reached.

A source is a class with ``run``: it receives messages, has ``Handover`` put their keys into the
queue, and acknowledges them only then. What no event reports, ``audiofuse reconcile`` finds.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from redis import RedisError

from audiofuse.core.errors import AudiofuseError
from audiofuse.core.retrying import BackOff, retry
from audiofuse.workers.intake.events import Dropped, Event, key_to_sync, parse
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.telemetry.metrics import EVENTS, HANDED_OVER, IGNORED, INTAKE_FAILURES
from audiofuse.workers.telemetry.names import Flaw, Lane, Source
from audiofuse.workers.telemetry.tracing import span

log = logging.getLogger(__name__)

AGAIN = BackOff(first_s=5, most_s=5)  # longer: events wait longer once all is back
LOG_PAUSE_S = 60.0  # between two lines about the same flaw

AWAY = (AudiofuseError, RedisError, OSError)


class Intake(Protocol):
    """An event source of the bucket."""

    def run(self, stop: threading.Event) -> None:
        """Hand over the source's events until ``stop`` is set."""


def persist(run: Callable[[threading.Event], None], stop: threading.Event, source: Source) -> None:
    """Run a source until ``stop`` is set; while something it needs is away, begin it again."""

    def report(error: Exception, pause_s: float) -> None:
        INTAKE_FAILURES.labels(source).inc()
        log.warning("intake pauses for %.0f s: %s", pause_s, error)

    def work() -> None:
        if not stop.is_set():
            run(stop)

    while not stop.is_set():
        retry(work, AWAY, AGAIN, report, stop.wait)


class Handover:
    """Hands the keys of one bucket that messages name over to the workers; counts all others.

    Many threads may use it at once. ``dropped`` counts what was dropped, by its flaw.
    """

    def __init__(
        self,
        bucket: str,
        dispatcher: Dispatcher,
        source: Source,
        names: Callable[[str, str], Sequence[str]] | None = None,
    ) -> None:
        """Hand over the events of ``bucket``, which come from ``source``.

        Of several buckets ``names`` returns what an object of a bucket is called among all, perhaps
        several names: which of them it is only a look tells.
        """
        self.dropped: Counter[Flaw] = Counter()
        self._source = source
        self._bucket = bucket
        self._mounted_names = names
        self._dispatcher = dispatcher
        self._lock = threading.Lock()
        self._quiet_until: dict[Flaw, float] = {}

    def hand_over(self, bodies: Iterable[str | bytes]) -> None:
        """Hand over the messages' keys, each once; when this returns the broker has them all.

        Raises ``Unavailable`` when the broker takes none: then no message may be acknowledged.
        """
        found = (each for body in bodies for each in parse(body))
        keys = Counter(key for each in found for key in self._keys(each))
        for key, events in keys.items():
            with span("event", source=self._source, key=key):
                self._dispatcher.sync(key, Lane.LIVE)
            EVENTS.labels(self._source, HANDED_OVER).inc(events)

    def _keys(self, found: Event | Dropped) -> Iterator[str]:
        if isinstance(found, Dropped):
            self.drop(found)
            return
        names = self._names(found.bucket, found.key)
        if not names:
            self.drop(Dropped(Flaw.FOREIGN_BUCKET, f"an event of {found.bucket[:100]!r}"))
        for name in names:
            key = key_to_sync(name) if found.changes_sound else None
            if key is None:
                EVENTS.labels(self._source, IGNORED).inc()
            else:
                yield key

    def _names(self, bucket: str, key: str) -> Sequence[str]:
        """Return what an object is called here; nothing if it is in none of our buckets."""
        if self._mounted_names:
            return self._mounted_names(bucket, key)
        return [key] if bucket == self._bucket else []

    def drop(self, dropped: Dropped) -> None:
        """Count it, and log it unless the same flaw was logged a moment ago."""
        flaw, now = dropped.flaw, time.monotonic()
        EVENTS.labels(self._source, flaw).inc()
        with self._lock:
            self.dropped[flaw] += 1
            count = self.dropped[flaw]
            if now < self._quiet_until.get(flaw, now):
                return
            self._quiet_until[flaw] = now + LOG_PAUSE_S
        log.warning("dropped, %d of this kind so far: %s", count, dropped)
