"""Reconcile: find what the index does not know of the bucket, however the events went astray.

    list the bucket ───> a table on disk, in which every sound is missing
    walk the index ────> until its point is met: agreed, outdated, or orphaned without an object
    read dead letters ─> rejected as it is now: left alone; and letters whose objects are gone

Buckets are listed by key and Qdrant is walked by point id, so neither can be held against the other
as they stream. The table, a temporary file, joins them; memory stays the same for any number of
objects. A finding may be outdated once it is read, which does no harm: whoever syncs the key looks
at the bucket again. Nothing is found of a listing that was cut short: it raises.
"""

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Any, Protocol, TypeVar

from redis import Redis

from audiofuse.core.errors import Unavailable
from audiofuse.core.index.index import Generation, Index, open_index
from audiofuse.core.items import ObjectInfo, is_audio, is_sidecar, sidecar_keys
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import Store, open_store
from audiofuse.workers.queue.broker import connect_redis
from audiofuse.workers.queue.dead_letters import DeadLetters

FIELDS = ("bucket", "key", "etag", "sidecar_etag", "modified")
BATCH = 500  # keys that are looked up at once
CACHE_KIB = 32 * 1024  # of the table, in memory
TABLE = """
CREATE TABLE objects (
  key TEXT PRIMARY KEY,
  etag TEXT,  -- none: there is a point or a letter, but no object
  modified INTEGER,
  finding TEXT  -- none: it is a sidecar
) WITHOUT ROWID
"""
FOUND = """
INSERT INTO objects (key, finding) VALUES (?, ?)
ON CONFLICT (key) DO UPDATE SET finding = excluded.finding
"""

T = TypeVar("T")
State = tuple[str, int]  # etag, modified


class Finding(StrEnum):
    """What a sound is to the index."""

    MISSING = "missing"
    OUTDATED = "outdated"
    ORPHANED = "orphaned"  # a point, or a letter, whose object is gone
    REJECTED = "rejected"  # as it is now
    AGREED = "agreed"


DIFFERENT = (Finding.MISSING, Finding.OUTDATED, Finding.ORPHANED)


class Track(Protocol):
    """Shows how far a walk has come."""

    def __call__(self, steps: Iterable[T], what: str, total: int | None, /) -> Iterable[T]:
        """Hand the steps on; ``total`` is how many there will be, where that is known."""


def unseen(steps: Iterable[T], _what: str, _total: int | None, /) -> Iterable[T]:
    """Show nothing."""
    return steps


def differences(
    store: Store,
    index: Index,
    generation: Generation | None,
    dead_letters: DeadLetters,
    prefix: str = "",
) -> Iterator[str]:
    """Yield each audio key under ``prefix`` whose point is missing, outdated or orphaned.

    Without a ``generation`` nothing is indexed yet. Objects that were rejected in their present
    state are left alone.
    """
    with compare(store, index, generation, dead_letters, prefix) as comparison:
        yield from comparison.keys()


@contextmanager
def compare(  # noqa: PLR0913, PLR0917 - two sides, what is between them, and how to look
    store: Store,
    index: Index,
    generation: Generation | None,
    dead_letters: DeadLetters,
    prefix: str = "",
    track: Track = unseen,
) -> Iterator["Comparison"]:
    """Compare as ``differences`` does and lend what was found; raises ``Unavailable``."""
    with _temporary_file() as database:
        started = time.monotonic()
        comparison = Comparison(database)
        comparison.take_down(track(store.list(prefix), "listing the bucket", None))
        if generation:
            points = track(
                index.scroll(generation, FIELDS), "walking the index", index.count(generation)
            )
            payloads = (point.payload for point in points)
            comparison.hold_against(
                payload
                for payload in payloads
                if payload["bucket"] == store.bucket and payload["key"].startswith(prefix)
            )
        comparison.read_letters(dead_letters, prefix)
        comparison.run = Run(time.time(), time.monotonic() - started, comparison.counts())
        yield comparison


@contextmanager
def _temporary_file() -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect("")) as database:  # no name: a file that goes with it
            yield database
    except sqlite3.OperationalError as error:
        raise Unavailable(f"the comparison's temporary file: {error}") from error


class Comparison:
    """A bucket's objects and what was found of each, in a table on disk."""

    run: "Run"

    def __init__(self, database: sqlite3.Connection) -> None:
        """Begin with an empty table in an empty database."""
        self._database = database
        database.execute("PRAGMA journal_mode = OFF")  # it is never read again
        database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        database.execute(TABLE)

    def take_down(self, objects: Iterable[ObjectInfo]) -> None:
        """Take down every sound, missing until its point is met, and every sidecar."""
        self._database.executemany(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)",
            (
                (each.key, each.etag, each.modified_ms, Finding.MISSING if sound else None)
                for each in objects
                if (sound := is_audio(each.key)) or is_sidecar(each.key)
            ),
        )

    def hold_against(self, payloads: Iterable[Mapping[str, Any]]) -> None:
        """Compare the objects with what the index says of them."""
        for batch in _batches(payloads):
            keys = [key for each in batch for key in (each["key"], *sidecar_keys(each["key"]))]
            objects = self._objects(keys)
            found = [(each["key"], _finding(objects, each)) for each in batch]
            self._database.executemany(FOUND, found)

    def read_letters(self, dead_letters: DeadLetters, prefix: str) -> None:
        """Leave alone what was rejected as it is; name what was rejected and is gone."""
        for batch in self._missing():
            letters = dead_letters.get(key for key, _ in batch)
            rejected = [
                (key, Finding.REJECTED)
                for key, etag in batch
                if key in letters and letters[key].etag == etag
            ]
            self._database.executemany(FOUND, rejected)
        for keys in _batches(filter(is_audio, dead_letters.keys(prefix=prefix))):
            lost = set(keys) - self._objects(keys).keys()
            self._database.executemany(FOUND, ((key, Finding.ORPHANED) for key in lost))

    def counts(self) -> dict[str, int]:
        """Return how many sounds there are of each finding."""
        counted = self._database.execute(
            "SELECT finding, count(*) FROM objects WHERE finding NOT NULL GROUP BY finding"
        )
        found = Counter(dict(counted))
        return {str(finding): found[finding] for finding in Finding}

    def keys(self, *findings: Finding) -> Iterator[str]:
        """Yield the keys with one of the findings; without any, of all that differ."""
        for finding in findings or DIFFERENT:
            rows = self._database.execute("SELECT key FROM objects WHERE finding = ?", (finding,))
            yield from (key for (key,) in rows)

    def _objects(self, keys: list[str]) -> dict[str, State]:
        marks = ", ".join("?" * len(keys))
        rows = self._database.execute(
            "SELECT key, etag, modified FROM objects "  # noqa: S608 - question marks only
            f"WHERE etag NOT NULL AND key IN ({marks})",
            keys,
        )
        return {key: (etag, modified) for key, etag, modified in rows}

    def _missing(self) -> Iterator[list[tuple[str, str]]]:
        """Yield keys and etags in batches; each is read before the next is changed."""
        last = ""
        while True:
            batch = self._database.execute(
                "SELECT key, etag FROM objects WHERE finding = ? AND key > ? ORDER BY key LIMIT ?",
                (Finding.MISSING, last, BATCH),
            ).fetchall()
            if not batch:
                return
            last = batch[-1][0]
            yield batch


def _finding(objects: Mapping[str, State], payload: Mapping[str, Any]) -> Finding:
    """Judge a point by the object and the sidecar that wins."""
    if payload["key"] not in objects:
        return Finding.ORPHANED
    etag, modified = objects[payload["key"]]
    sidecars = (objects[key][0] for key in sidecar_keys(payload["key"]) if key in objects)
    present = (etag, next(sidecars, ""), modified)
    indexed = (payload["etag"], payload["sidecar_etag"], payload["modified"])
    return Finding.AGREED if indexed == present else Finding.OUTDATED


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, BATCH)):
        yield batch


@dataclass(frozen=True)
class Run:
    """One comparison: when it ended (Unix time), how long it took, how many of each finding.

    ``in_a_row`` is how many, up to this one, found something that differs.
    """

    at: float
    seconds: float
    found: dict[str, int]
    in_a_row: int = 0

    @property
    def differing(self) -> int:
        """How many sounds are to be synced."""
        return sum(self.found[each] for each in DIFFERENT)


class LastRun:
    """The last comparison of a whole bucket, kept in Redis for whoever asks how it stands."""

    def __init__(self, redis: Redis, bucket: str) -> None:
        """Keep it for the bucket of this name."""
        self._redis = redis
        self._name = f"audiofuse:reconciled:{bucket}"

    def write(self, run: Run) -> None:
        """Record a comparison."""
        before = self.read()
        in_a_row = 1 + (before.in_a_row if before else 0) if run.differing else 0
        run = replace(run, in_a_row=in_a_row)
        self._redis.set(self._name, json.dumps(asdict(run)))

    def read(self) -> Run | None:
        """Return the last one, if there was any."""
        content: str | None = self._redis.get(self._name)  # type: ignore[assignment]
        return Run(**json.loads(content)) if content else None


def build_reconcile(settings: Settings, store: Store) -> Callable[[str], Iterable[str]]:
    """Build the comparison of bucket and live index, as a function of a key prefix."""
    index = open_index(settings)
    dead_letters = DeadLetters(connect_redis(settings), store.bucket)

    def reconcile(prefix: str) -> Iterable[str]:
        return differences(store, index, index.live(), dead_letters, prefix)

    return reconcile


@contextmanager
def open_comparison(
    settings: Settings, prefix: str = "", track: Track = unseen, *, record: bool = True
) -> Iterator[Comparison]:
    """Compare bucket and live index now; ``record`` what was found, if all was compared."""
    store, index, redis = open_store(settings), open_index(settings), connect_redis(settings)
    dead_letters = DeadLetters(redis, store.bucket)
    with compare(store, index, index.live(), dead_letters, prefix, track) as comparison:
        if record and not prefix:
            LastRun(redis, store.bucket).write(comparison.run)
        yield comparison
