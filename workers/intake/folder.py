"""The folder as an event source: the operating system tells of every change."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from watchfiles import Change, watch

from audiofuse.core.errors import Unavailable
from audiofuse.core.storage.store import FolderStore
from audiofuse.core.storage.temporary import is_temporary
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

    def __init__(
        self, store: FolderStore, dispatcher: Dispatcher, reconcile: Reconcile, top: str = ""
    ) -> None:
        """Hand over every change; ``reconcile(prefix)`` finds what notifications do not tell.

        ``top`` is how the names of the folder's objects begin among those of several buckets.
        """
        self._store = store
        self._top = top
        self._dispatcher = dispatcher
        self._reconcile = reconcile
        self._folders: set[str] = set()  # keys of what was a folder when it was last seen

    def run(self, stop: threading.Event) -> None:
        """Watch until ``stop`` is set. What changed while nobody watched is found first."""
        persist(self._watch, stop, Source.FOLDER)

    def _watch(self, stop: threading.Event) -> None:
        caught_up, watched = False, self._identity()
        for changes in watch(
            self._store.root, debounce=SETTLE_MS, step=50, stop_event=stop,
            rust_timeout=CHECK_STOP_MS, yield_on_timeout=True, watch_filter=None,
        ):  # fmt: skip
            if self._identity() != watched:  # the system tells of the old one only
                raise Unavailable(f"another folder is mounted or was moved to {self._store.root}")
            came_or_went = {path for change, path in changes if change is not Change.modified}
            for path in sorted({path for _, path in changes}):
                self._changed(Path(path), came_or_went=path in came_or_went)
            if not caught_up:  # only now that the watch is on: nothing falls between the two
                caught_up = True
                log.info("watching %s", self._store.root)
                self._learn(self._store.root)
                self._catch_up("")

    def _identity(self) -> tuple[int, int]:
        stat = self._store.root.stat()
        return stat.st_dev, stat.st_ino

    def _changed(self, path: Path, *, came_or_went: bool) -> None:
        """Hand over a sound or a sidecar; catch up with a folder that came, went, was renamed.

        Only what was known as a folder can have gone as one: a file that is there no more, as all
        temporary ones are, costs no look at the index.
        """
        key = self._store.key_of(path)
        if key is None:
            return
        if path.is_dir():
            if came_or_went or key not in self._folders:
                self._learn(path)
                self._catch_up(f"{key}/")
        elif key in self._folders:
            self._folders = {each for each in self._folders if not f"{each}/".startswith(f"{key}/")}
            self._catch_up(f"{key}/")
        elif not is_temporary(key) and (target := key_to_sync(key)):
            name = self._top + target
            with span("event", source=Source.FOLDER, key=name):
                self._dispatcher.sync(name, Lane.LIVE)
            EVENTS.labels(Source.FOLDER, HANDED_OVER).inc()

    def _learn(self, folder: Path) -> None:
        """Know a folder, and those in it, as folders."""
        for path, _, _ in os.walk(folder):
            if key := self._store.key_of(Path(path)):
                self._folders.add(key)

    def _catch_up(self, prefix: str) -> None:
        count = 0
        for count, key in enumerate(self._reconcile(self._top + prefix), 1):  # noqa: B007 - counted for the log
            self._dispatcher.sync(key, Lane.BACKFILL)
        log.info("compared %r with the index: %d objects differ", self._top + prefix, count)


class FolderIntakes:
    """Watches several folders, each in a thread of its own."""

    def __init__(self, intakes: Sequence[FolderIntake]) -> None:
        """Run these."""
        self._intakes = intakes

    def run(self, stop: threading.Event) -> None:
        """Watch until ``stop`` is set; if one of them ends by a bug all end, with it."""
        with ThreadPoolExecutor(len(self._intakes)) as threads:
            running = [threads.submit(each.run, stop) for each in self._intakes]
            try:
                for ended in as_completed(running):
                    ended.result()
            finally:
                stop.set()
