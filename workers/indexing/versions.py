"""The encoder versions of a worker: every item is written into the generation of each.

    document ──> wanted versions ──> loaded in the background ──> leased to a message, while it
    (looked at every second)         and let go of when nobody    needs them
                                     wants or uses them any more

A message is synced into the live generation first, then into the other. What the other does not
take, because it is not loaded here or fails, is noted among the keys that wait for it
(``workers/queue/waiting.py``), and the message is settled all the same: no message is acknowledged
before every version has the item, or its key waits for that version.

The document is a lease (``workers/queue/followers.py``): a worker that could not read it for a
while does not know what is live, and settles nothing.
"""

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from redis import RedisError

from audiofuse.core.bundles.document import POLL_S
from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.index.index import Generation, GenerationGone
from audiofuse.core.retrying import BackOff, retry
from audiofuse.core.storage.store import Store
from audiofuse.workers.indexing.breaker import Breaker
from audiofuse.workers.indexing.items.collaborators import Points
from audiofuse.workers.indexing.items.sync import Synced, Syncer
from audiofuse.workers.indexing.retries import MAX_DELIVERIES
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.queue.dead_letters import DeadLetter, DeadLetters
from audiofuse.workers.queue.followers import Follower
from audiofuse.workers.queue.waiting import WaitingKeys
from audiofuse.workers.telemetry.logs import bind
from audiofuse.workers.telemetry.names import Lane, Outcome

log = logging.getLogger(__name__)

LOADING_AGAIN = BackOff(first_s=1, most_s=32)
DRAIN_S = 2.0  # seconds between two looks at what waits for a version; raised, it waits longer
DRAINED_AT_ONCE = 500  # keys that one look hands over at most; raised, the lane may fill with them


@dataclass(frozen=True, eq=False)
class Loaded:
    """One version as a worker uses it. Equal fingerprints: their audio vectors agree.

    ``make`` makes what is lacking of its collection; ``let_go`` tells the device that this process
    needs it no more.
    """

    generation: Generation
    audio_fingerprint: str
    points: Points
    syncers: Mapping[Lane, Syncer]
    make: Callable[[], object]
    let_go: Callable[[], object]
    breaker: Breaker = field(default_factory=Breaker)


class Versions:
    """Loads what the document names, and leases it to messages."""

    def __init__(self, follower: Follower, live: str) -> None:
        """Begin with nothing loaded; ``live`` is wanted until the document says otherwise."""
        self._follower = follower
        self._changed = threading.Condition()
        self._wanted: tuple[str, ...] = (live,)
        self._loaded: dict[str, Loaded] = {}
        self._leased = Counter[str]()

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
        """Look at the document now; while it cannot be read, what is wanted stays as it was."""
        try:
            rollout = self._follower.look()
        except Unavailable as error:
            log.warning("nothing is settled until the rollout's document is read: %s", error)
            return
        with self._changed:
            if rollout:
                self._wanted = rollout.versions
            self._changed.notify_all()

    def follow(self) -> None:
        """Look again and again, for ever."""
        while True:
            time.sleep(POLL_S)
            self.look()

    def check(self) -> None:
        """Raise ``Unavailable`` if it is not known any more what is wanted."""
        self._follower.check()

    def keep_loaded(self, load: Callable[[str], Loaded]) -> None:
        """Load what is wanted, let go of what is not, for ever; what fails is tried again."""
        load_missing = partial(self._load_missing, load)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._missing() or self._surplus())
            retry(load_missing, (Exception,), LOADING_AGAIN, _tell_not_loaded)

    def _load_missing(self, load: Callable[[str], Loaded]) -> None:
        self._let_go()
        for version in self._missing():
            started = time.monotonic()
            self.put(load(version))
            log.info("encoder %s is loaded, in %.1f s", version, time.monotonic() - started)

    def put(self, loaded: Loaded) -> None:
        """Have a version that is loaded."""
        with self._changed:
            self._loaded[loaded.generation.version] = loaded

    def _missing(self) -> list[str]:
        return [version for version in self._wanted if version not in self._loaded]

    def _surplus(self) -> list[str]:
        return [v for v in self._loaded if v not in self._wanted and not self._leased[v]]

    def _let_go(self) -> None:
        with self._changed:
            gone = [self._loaded.pop(version) for version in self._surplus()]
        for loaded in gone:
            loaded.let_go()
            log.info("encoder %s is let go of", loaded.generation.version)

    @contextmanager
    def lease(self) -> Iterator[dict[str, Loaded | None]]:
        """Lease what is wanted, by version, the live one first; ``None`` is not loaded yet.

        Raises ``Unavailable`` if it is not known what is wanted.
        """
        self.check()
        with self._changed:
            leased = {version: self._loaded.get(version) for version in self._wanted}
            used = [version for version, loaded in leased.items() if loaded]
            self._leased.update(used)
        try:
            yield leased
        finally:
            with self._changed:
                self._leased.subtract(used)
                self._changed.notify_all()

    def stored_elsewhere(
        self, version: str, audio_fingerprint: str
    ) -> tuple[Points, Generation] | None:
        """Return the live generation, if its audio vectors are those of ``version``."""
        with self._changed:
            live = self._loaded.get(self._wanted[0])
        if (
            live is None
            or live.generation.version == version
            or live.audio_fingerprint != audio_fingerprint
        ):
            return None
        return live.points, live.generation


def _tell_not_loaded(error: Exception, pause_s: float) -> None:
    log.error("not everything is loaded; again in %.0f s", pause_s, exc_info=error)


class MultiVersionSyncer:
    """Syncs messages of one lane into every version; for ``RetryPolicy`` it is one syncer."""

    def __init__(
        self,
        versions: Versions,
        lane: Lane,
        store: Store,
        letters: DeadLetters,
        waiting: WaitingKeys,
    ) -> None:
        """Sync from ``store`` into ``versions``; ``waiting`` takes the keys that one lacks."""
        self.store = store
        self.letters = letters
        self._versions = versions
        self._lane = lane
        self._waiting = waiting
        self._bugs = Counter[tuple[str, str]]()  # of versions that are not live, by version and key

    def sync(self, key: str) -> Synced:
        """Make every generation agree with the bucket; what the live one gives is what counts.

        What another version fails at is left to its backfill, and never holds the live one. Raises
        what ``Syncer.sync`` does, and ``Unavailable`` if the rollout's document is not known.
        """
        with self._versions.lease() as leased:
            live, *others = leased.items()
            bind(version=live[0])
            synced = self._sync_live(key, *live)
            for version, loaded in others:
                self._sync_other(key, version, loaded)
            # Only now it is known that nobody decided otherwise while this was worked on.
            self._versions.check()
        if isinstance(synced, Rejected):
            raise synced
        return synced

    def _sync_live(self, key: str, version: str, loaded: Loaded | None) -> Synced | Rejected:
        if loaded is None:
            self._waiting.add(version, key)
            return Synced(Outcome.LATER)
        try:
            return loaded.syncers[self._lane].sync(key)
        except Rejected as verdict:
            return verdict
        except GenerationGone:
            self._make_anew(version, loaded)
            raise

    def _make_anew(self, version: str, loaded: Loaded) -> None:
        """Make the collection of the live version, which nobody drops: the index was emptied."""
        self._versions.look()
        self._versions.check()
        if self._versions.wanted[0] == version:
            log.warning("the collection of %s is gone: it is made anew, empty", version)
            loaded.make()

    def _sync_other(self, key: str, version: str, loaded: Loaded | None) -> None:
        """Sync into a version that is not live; leave what it fails at to its backfill."""
        if loaded is not None:
            try:
                loaded.syncers[self._lane].sync(key)
            except Rejected:
                return  # its own letter says so
            except (Unavailable, RedisError) as error:
                log.warning("%s waits for %s: %s", key, version, error)
            except Exception as error:
                log.exception("%s: a bug of %s", key, version)
                if self._is_given_up(key, loaded, error):
                    return
            else:
                loaded.breaker.passed()
                return
        self._waiting.add(version, key)

    def _is_given_up(self, key: str, loaded: Loaded, error: Exception) -> bool:
        """Count a bug of a version that is not live; the third costs the object that version."""
        counted = loaded.generation.version, key
        self._bugs[counted] += 1
        if loaded.breaker.failed(key, error) or self._bugs[counted] < MAX_DELIVERIES:
            return False
        verdict = Rejected(Reason.BUG, f"{type(error).__name__}: {error}")
        loaded.syncers[self._lane].give_up(key, verdict)
        del self._bugs[counted]
        return True

    def give_up(self, key: str, verdict: Rejected) -> None:
        """Record what keeps the object out of the live version; the others wait for it."""
        with self._versions.lease() as leased:
            live, *others = leased.items()
            for version, loaded in others:
                self._sync_other(key, version, loaded)
            if live[1] is None:
                self._waiting.add(live[0], key)
            else:
                live[1].syncers[self._lane].give_up(key, verdict)


class Drain:
    """Hands what waits for a version over to the backfill lane, once the version is loaded.

    As long as what is handed over comes back, because the version still fails, one key at a time
    tries whether it does: what waits must not fill the lane.
    """

    def __init__(self, versions: Versions, waiting: WaitingKeys, dispatcher: Dispatcher) -> None:
        """Drain ``waiting`` into what the ``dispatcher`` sends, for the loaded ``versions``."""
        self._versions = versions
        self._waiting = waiting
        self._dispatcher = dispatcher
        self._left: dict[str, int] = {}  # keys that waited at the last step, by version
        self._at_most: dict[str, int] = {}

    def run(self) -> None:
        """Drain for ever; while Redis is away, try again."""
        while True:
            time.sleep(DRAIN_S)
            try:
                self.step()
            except (Unavailable, RedisError) as error:
                log.warning("what waits for a version cannot be handed over: %s", error)

    def step(self) -> None:
        """Hand over some of what waits for each version that is wanted and loaded."""
        loaded = {each.generation.version for each in self._versions.loaded}
        for version in loaded & set(self._versions.wanted):
            left = self._waiting.count(version)
            fewer = left < self._left.get(version, math.inf)
            at_most = min(2 * self._at_most.get(version, 1), DRAINED_AT_ONCE) if fewer else 1
            self._left[version], self._at_most[version] = left, at_most
            if left:
                self._waiting.drain(version, self._dispatcher, at_most)


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
