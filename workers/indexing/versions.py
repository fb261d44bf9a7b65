"""The encoder versions of a worker: every item is written into the generation of each.

    document ──> wanted versions ──> loaded in the background ──> lent to a message, while it needs
    (looked at every second)         and let go of when nobody wants or uses them any more

A message is synced into the live generation first, then into the other. What cannot be done yet,
because a version is not loaded here, is left to the backfill lane: no message is acknowledged
before every version has the item, or another message will see to that.
"""

import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from redis import RedisError

from audiofuse.core.bundles.document import POLL_S
from audiofuse.core.bundles.registry import Watch
from audiofuse.core.errors import Rejected, Unavailable
from audiofuse.core.index.index import Generation, GenerationGone, Point
from audiofuse.core.retrying import BackOff, retry
from audiofuse.core.storage.store import Store
from audiofuse.workers.indexing.device.device import Device
from audiofuse.workers.indexing.sync import Points, Synced, Syncer
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.queue.dead_letters import DeadLetter, DeadLetters
from audiofuse.workers.telemetry.logs import bind
from audiofuse.workers.telemetry.names import Lane, Outcome

log = logging.getLogger(__name__)

LOADING_AGAIN = BackOff(first_s=1, most_s=32)
LOADING_PAUSE_S = 0.5  # what a backfill message waits before it goes to the end of its lane


@dataclass(frozen=True, eq=False)
class Loaded:
    """One version as a worker uses it. Equal ``ears`` hear the same: their audio vectors agree."""

    generation: Generation
    audio_fingerprint: str
    device: Device
    points: Points
    syncers: Mapping[Lane, Syncer]


class Versions:
    """Loads what the document names, and lends it to messages."""

    def __init__(self, watch: Watch, load: Callable[[str], Loaded], first: Loaded) -> None:
        """Begin with the ``first`` version; ``load`` gets others when the document names them."""
        self._watch = watch
        self._load = load
        self._changed = threading.Condition()
        self._wanted: tuple[str, ...] = (first.generation.version,)
        self._loaded = {first.generation.version: first}
        self._lent = Counter[str]()

    @property
    def loaded(self) -> list[Loaded]:
        """What is loaded now."""
        with self._changed:
            return list(self._loaded.values())

    @property
    def wanted(self) -> tuple[str, ...]:
        """The versions that every item must be in, the live one first."""
        return self._wanted

    def look(self) -> None:
        """Look at the document now."""
        rollout = self._watch.look()
        with self._changed:
            if rollout:
                self._wanted = rollout.versions
            self._changed.notify_all()

    def follow(self) -> None:
        """Look again and again, for ever."""
        while True:
            time.sleep(POLL_S)
            self.look()

    def keep_loaded(self) -> None:
        """Load what is wanted, let go of what is not, for ever; what fails is tried again."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._missing() or self._surplus())
            retry(self._load_missing, (Exception,), LOADING_AGAIN, _tell_not_loaded)

    def _load_missing(self) -> None:
        self._let_go()
        for version in self._missing():
            self._get(version)

    def _missing(self) -> list[str]:
        return [version for version in self._wanted if version not in self._loaded]

    def _surplus(self) -> list[str]:
        return [v for v in self._loaded if v not in self._wanted and not self._lent[v]]

    def _get(self, version: str) -> None:
        started = time.monotonic()
        loaded = self._load(version)
        with self._changed:
            self._loaded[version] = loaded
        log.info("encoder %s is loaded, in %.1f s", version, time.monotonic() - started)

    def _let_go(self) -> None:
        with self._changed:
            gone = [self._loaded.pop(version) for version in self._surplus()]
        for loaded in gone:
            loaded.device.close()
            log.info("encoder %s is let go of", loaded.generation.version)
        if gone:
            del gone, loaded
            gc.collect()

    @contextmanager
    def lease(self) -> Iterator[dict[str, Loaded | None]]:
        """Lend what is wanted, by version, the live one first; ``None`` is not loaded yet."""
        with self._changed:
            lent = {version: self._loaded.get(version) for version in self._wanted}
            taken = [version for version, loaded in lent.items() if loaded]
            self._lent.update(taken)
        try:
            yield lent
        finally:
            with self._changed:
                self._lent.subtract(taken)
                self._changed.notify_all()

    def heard_elsewhere(self, version: str, audio_fingerprint: str, id_: str) -> Point | None:
        """Return the live generation's point, if another version with the same ears asks."""
        with self._changed:
            live = self._loaded.get(self._wanted[0])
        if (
            live is None
            or live.generation.version == version
            or live.audio_fingerprint != audio_fingerprint
        ):
            return None
        return live.points.get(live.generation, [id_], vectors=True).get(id_)


def _tell_not_loaded(error: Exception, pause_s: float) -> None:
    log.error("not everything is loaded; again in %.0f s", pause_s, exc_info=error)


class MultiVersionSyncer:
    """Syncs messages of one lane into every version; for ``RetryPolicy`` it is one syncer."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a message meets, and what is done without
        self,
        versions: Versions,
        lane: Lane,
        store: Store,
        letters: DeadLetters,
        dispatcher: Dispatcher,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """Sync from ``store`` into ``versions``; the ``dispatcher`` takes what is left to do."""
        self.store = store
        self.letters = letters
        self._versions = versions
        self._lane = lane
        self._dispatcher = dispatcher
        self._pause = pause

    def sync(self, key: str) -> Synced:
        """Make every generation agree with the bucket; what the live one gives is what counts.

        See ``Syncer.sync``. Of a message of the backfill lane nothing is done while a version is
        not loaded, and after a while it is left to another message.
        """
        with self._versions.lease() as lent:
            bind(version=next(iter(lent)))
            complete = None not in lent.values()
            if not complete and self._lane is Lane.BACKFILL:
                self._pause(LOADING_PAUSE_S)
                results: list[Synced | Rejected | None] = []
            else:
                results = [self._sync(key, loaded) for loaded in lent.values() if loaded]
        if not complete:
            self._dispatcher.sync(key, Lane.BACKFILL)
        found = [each for each in results if each]
        first = found[0] if found else Synced(Outcome.LATER)
        if isinstance(first, Rejected):
            raise first
        return first

    def _sync(self, key: str, loaded: Loaded) -> Synced | Rejected | None:
        """Sync into one version; return its verdict, or nothing if the version was dropped."""
        try:
            return loaded.syncers[self._lane].sync(key)
        except Rejected as verdict:
            return verdict
        except GenerationGone:
            self._versions.look()
            if loaded.generation.version in self._versions.wanted:
                raise  # it is not made yet
            return None

    def give_up(self, key: str, verdict: Rejected) -> None:
        """Have each version try once more by itself, and give up where that meets the bug again."""
        with self._versions.lease() as lent:
            for loaded in filter(None, lent.values()):
                try:
                    self._sync(key, loaded)
                except (Unavailable, RedisError):
                    raise
                except Exception as error:  # noqa: BLE001 - the bug that was logged before
                    log.warning("%s: given up for %s: %r", key, loaded.generation.version, error)
                    loaded.syncers[self._lane].give_up(key, verdict)


class VersionDeadLetters:
    """The dead letters as one version keeps them.

    The live one answers for all letters. Another sees its own only, and is silent about what the
    live one rejected in the same state: what it says is that it alone rejects.
    """

    def __init__(self, letters: DeadLetters, version: str, is_live: Callable[[], bool]) -> None:
        """Keep ``letters``, which are added as those of ``version``."""
        self._letters = letters
        self._version = version
        self._is_live = is_live

    def get(self, keys: Iterable[str]) -> dict[str, DeadLetter]:
        """Return the letters that this version answers for."""
        found = self._letters.get(keys)
        if self._is_live():
            return found
        return {key: each for key, each in found.items() if each.encoder == self._version}

    def add(self, key: str, verdict: Rejected) -> None:
        """Record a verdict, unless the live one has said so."""
        known = None if self._is_live() else self._letters.get([key]).get(key)
        if known is None or known.encoder == self._version or known.etag != verdict.etag:
            self._letters.add(key, verdict)

    def clear(self, keys: Iterable[str]) -> None:
        """Forget letters that were returned."""
        self._letters.clear(keys)
