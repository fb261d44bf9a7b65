"""The folder as an event source: the operating system tells of every change."""

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from watchfiles import watch

from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.intake.events import key_to_sync
from audiofuse.workers.intake.handover import persist
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.telemetry.metrics import EVENTS, HANDED_OVER
from audiofuse.workers.telemetry.names import Lane, Source
from audiofuse.workers.telemetry.tracing import span

log = logging.getLogger(__name__)

SETTLE_MS = 200  # changes of one file within this time are one change
CHECK_STOP_MS = 500

Reconcile = Callable[[str], Iterable[str]]


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
