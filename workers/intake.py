"""Intake: what every event source shares, and the folder. No torch is reached.

A source is a class with ``run``; it takes messages, has ``Handover`` hand them over, and lets go of
them only then. What no event tells, ``audiofuse reconcile`` finds.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from redis import RedisError
from watchfiles import watch

from core.errors import AudiofuseError
from core.store import FolderStore
from workers.broker import Dispatcher, Lane
from workers.events import Dropped, Event, Flaw, Source, key_to_sync, parse
from workers.metrics import EVENTS, HANDED_OVER, IGNORED, INTAKE_FAILURES
from workers.tracing import span

log = logging.getLogger(__name__)

RETRY_PAUSE_S = 5.0
LOG_PAUSE_S = 60.0  # between two lines about the same flaw
SETTLE_MS = 200  # changes of one file within this time are one change
CHECK_STOP_MS = 500

AWAY = (AudiofuseError, RedisError, OSError)

Reconcile = Callable[[str], Iterable[str]]


class Intake(Protocol):
    """An event source of the bucket."""

    def run(self, stop: threading.Event) -> None:
        """Hand over what the source tells until ``stop`` is set."""


def persist(run: Callable[[threading.Event], None], stop: threading.Event, source: Source) -> None:
    """Run a source until ``stop`` is set; while something it needs is away, begin it again."""
    while not stop.is_set():
        try:
            run(stop)
        except AWAY as error:
            INTAKE_FAILURES.labels(source).inc()
            log.warning("intake pauses for %.0f s: %s", RETRY_PAUSE_S, error)
            stop.wait(RETRY_PAUSE_S)


class Handover:
    """Hands what messages tell of one bucket over to the workers; drops and counts the rest.

    Many threads may use it at once. ``dropped`` counts what was dropped, by its flaw.
    """

    def __init__(self, bucket: str, dispatcher: Dispatcher, source: Source) -> None:
        """Hand over the events of ``bucket``, which come from ``source``."""
        self.dropped: Counter[Flaw] = Counter()
        self._source = source
        self._bucket = bucket
        self._dispatcher = dispatcher
        self._lock = threading.Lock()
        self._quiet_until: dict[Flaw, float] = {}

    def hand_over(self, bodies: Iterable[str | bytes]) -> None:
        """Hand over the messages' keys, each once; when this returns the broker has them all.

        Raises ``Unavailable`` when the broker takes none: then no message may be let go of.
        """
        keys = Counter(self._key(each) for body in bodies for each in parse(body))
        for key, events in keys.items():
            if key:
                with span("event", source=self._source, key=key):
                    self._dispatcher.sync(key, Lane.LIVE)
                EVENTS.labels(self._source, HANDED_OVER).inc(events)

    def _key(self, found: Event | Dropped) -> str | None:
        if isinstance(found, Dropped):
            self.drop(found)
            return None
        if found.bucket != self._bucket:
            self.drop(Dropped(Flaw.FOREIGN_BUCKET, f"an event of {found.bucket[:100]!r}"))
            return None
        key = key_to_sync(found.key) if found.changes_sound else None
        if key is None:
            EVENTS.labels(self._source, IGNORED).inc()
        return key

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


class FolderIntake:
    """Watches a folder by the operating system's own notifications."""

    def __init__(self, store: FolderStore, dispatcher: Dispatcher, reconcile: Reconcile) -> None:
        """Hand over every change; ``reconcile(prefix)`` finds what notifications do not tell."""
        self._store = store
        self._dispatcher = dispatcher
        self._reconcile = reconcile

    def run(self, stop: threading.Event) -> None:
        """Watch until ``stop`` is set. What changed while nobody watched is found first."""
        persist(self._watch, stop, Source.FOLDER)

    def _watch(self, stop: threading.Event) -> None:
        caught_up = False
        for changes in watch(
            self._store.root, debounce=SETTLE_MS, step=50, stop_event=stop,
            rust_timeout=CHECK_STOP_MS, yield_on_timeout=True, watch_filter=None,
        ):  # fmt: skip
            for path in sorted({path for _, path in changes}):
                self._changed(Path(path))
            if not caught_up:  # only now that the watch is on: nothing falls between the two
                caught_up = True
                log.info("watching %s", self._store.root)
                self._catch_up("")

    def _changed(self, path: Path) -> None:
        key = self._store.key_of(path)
        if key is None:
            return
        if target := key_to_sync(key):
            with span("event", source=Source.FOLDER, key=target):
                self._dispatcher.sync(target, Lane.LIVE)
            EVENTS.labels(Source.FOLDER, HANDED_OVER).inc()
        elif path.is_dir() or not path.exists():
            self._catch_up(f"{key}/")  # a whole folder came, went, or was renamed

    def _catch_up(self, prefix: str) -> None:
        count = 0
        for count, key in enumerate(self._reconcile(prefix), 1):  # noqa: B007 - counted for the log
            self._dispatcher.sync(key, Lane.BACKFILL)
        if count:
            log.info("%d objects under %r differ from the index", count, prefix)
