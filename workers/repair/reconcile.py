"""Reconcile: compare a bucket with its live index, and tell what is to be synced."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from redis import Redis

from audiofuse.core.index.index import Index, open_index
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import Store, open_store
from audiofuse.workers.queue.broker import connect_redis
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.repair.agreement import Agreement
from audiofuse.workers.repair.brake import Brake, Removals
from audiofuse.workers.repair.comparison import Comparison, Track, compare, unseen
from audiofuse.workers.repair.findings import LastRun, Run
from audiofuse.workers.repair.inventory import Listing

log = logging.getLogger(__name__)


def open_reconciler(settings: Settings) -> "Reconciler":
    """Open what compares the bucket and the index that the settings name; nothing is asked yet."""
    redis = connect_redis(settings)
    return Reconciler(open_store(settings), open_index(settings), redis, settings.index_name)


class Reconciler:
    """Compares a bucket with its live index, and records what was found."""

    def __init__(self, store: Store, index: Index, redis: Redis, index_name: str) -> None:
        """Compare ``store`` with the index of this name; letters and records are in ``redis``."""
        self._store = store
        self._index = index
        self._letters = DeadLetters(redis, index_name)
        self._last_run = LastRun(redis, index_name)
        self._brake = Brake(redis, index_name)

    def parts(self, prefix: str = "") -> Sequence[str]:
        """Return the prefixes of the buckets, each of which is compared apart from the others."""
        return self._store.parts(prefix)

    def record(self, runs: Sequence[Run]) -> None:
        """Record what was found in all buckets, compared one by one."""
        found = Counter[str]()
        for run in runs:
            found.update(run.found)
        seconds = sum(run.seconds for run in runs)
        self._last_run.write(Run(max(run.at for run in runs), seconds, dict(found)))

    @contextmanager
    def compare(
        self, prefix: str = "", track: Track = unseen, *, record: bool = True, remove: bool = False,
        listing: Listing | None = None,
    ) -> Iterator[Comparison]:  # fmt: skip
        """Compare now; ``record`` what was found, if all was compared, and what is held back.

        With ``remove`` nothing is held back. Instead of the bucket a ``listing`` may be compared.
        """
        live = self._index.live()
        with compare(
            self._store, self._index, live, self._letters, prefix, track, listing
        ) as comparison:
            if record and not prefix and not (listing and listing.is_inventory):
                self._last_run.write(comparison.run)
            if record:
                self._set_brake(comparison.removals, prefix, remove=remove)
            yield comparison

    def _set_brake(self, removals: Removals, prefix: str, *, remove: bool) -> None:
        if removals.are_too_many and not remove:
            log.warning("%s", removals)
            self._brake.hold(removals)
        else:
            self._brake.release(prefix)

    def differences(self, prefix: str) -> Iterator[str]:
        """Yield the keys under ``prefix`` that are to be synced; what is held back is not."""
        with self.compare(prefix) as comparison:
            yield from comparison.keys(*comparison.to_queue())

    def unsettled(self, comparison: Comparison, keys: list[str]) -> list[str]:
        """Return which keys of a comparison the live index has not come to agree with yet."""
        live = self._index.live()
        if live is None:
            return keys
        agreement = Agreement(self._store, self._index, live, self._letters)
        return agreement.unsettled(comparison, keys)
