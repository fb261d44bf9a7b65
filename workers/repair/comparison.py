"""A table on disk in which a bucket, an index and the dead letters are held against each other.

    list the bucket ───> a table on disk, in which every sound is missing
    walk the moments ──> how many each recording has, and in which state
    walk the index ────> until its point is met: agreed, outdated, or orphaned without an object;
                         outdated, too, if its moments are others than it is to have
    read dead letters ─> rejected as it is now: left alone; and letters whose objects are gone

Buckets are listed by key and Qdrant is walked by point id, so neither can be held against the other
as they stream. The table, a temporary file, joins them; memory stays the same for any number of
objects. An inventory may stand for the listing: it is some hours old, so what was indexed or
rejected since is left alone. A finding may be outdated once it is read, which does no harm: whoever
syncs the key looks at the bucket again. A listing that was cut short raises, and nothing is found.
"""

import itertools
import logging
import math
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any, Protocol, TypeVar

from audiofuse.core.errors import Reason, Unavailable
from audiofuse.core.index.index import Generation, GenerationGone, Index
from audiofuse.core.items import ObjectInfo, agrees, is_audio, is_sidecar, sidecar_keys
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.stored import STATE_FIELDS, moments_named, names_moments
from audiofuse.core.query import MAX_PREFIX_CHARACTERS, Filter
from audiofuse.core.storage.store import Store
from audiofuse.workers.queue.dead_letters import DeadLetter, DeadLetters
from audiofuse.workers.repair.brake import Removals
from audiofuse.workers.repair.findings import DIFFERENT, Finding, Run
from audiofuse.workers.repair.inventory import Listing

log = logging.getLogger(__name__)

FIELDS = ("key", *STATE_FIELDS, "moments", "moments_state", "indexed_at")
BATCH = 500  # keys that are looked up at once
CACHE_KIB = 32 * 1024  # of the table, in memory
UNREADABLE_AGAIN_S = 24 * 3600  # after so long what could not be read is tried again
TABLES = """
CREATE TABLE objects (
  key TEXT PRIMARY KEY,
  etag TEXT,  -- none: there is a point or a letter, but no object
  modified INTEGER,
  finding TEXT,  -- none: it is a sidecar
  judged REAL  -- when the letter was written that the comparison met, if it met one
) WITHOUT ROWID;
CREATE TABLE moments (  -- those of a recording whose point was not met yet
  key TEXT PRIMARY KEY,
  state TEXT,  -- "" if there are several
  count INTEGER
) WITHOUT ROWID
"""
COUNTED = """
INSERT INTO moments VALUES (?, ?, ?)
ON CONFLICT (key) DO UPDATE SET
  count = count + excluded.count, state = iif(state = excluded.state, state, '')
"""
LEFT = """
INSERT INTO objects (key, finding)
SELECT key, iif(key IN (SELECT key FROM objects WHERE etag NOT NULL), ?, ?)
FROM moments WHERE TRUE
ON CONFLICT (key) DO UPDATE SET finding = excluded.finding
"""
FOUND = """
INSERT INTO objects (key, finding) VALUES (?, ?)
ON CONFLICT (key) DO UPDATE SET finding = excluded.finding
"""

T = TypeVar("T")
State = tuple[str, int]  # etag, modified


class Track(Protocol):
    """Shows how far a walk has come."""

    def __call__(self, steps: Iterable[T], what: str, total: int | None, /) -> Iterable[T]:
        """Hand the steps on; ``total`` is how many there will be, where that is known."""


def unseen(steps: Iterable[T], _what: str, _total: int | None, /) -> Iterable[T]:
    """Show nothing."""
    return steps


@contextmanager
def compare(  # noqa: PLR0913, PLR0917 - two sides, what is between them, and how to look
    store: Store,
    index: Index,
    generation: Generation | None,
    dead_letters: DeadLetters,
    prefix: str = "",
    track: Track = unseen,
    listing: Listing | None = None,
) -> Iterator["Comparison"]:
    """Compare bucket and generation under ``prefix``, and lend what was found.

    With a ``listing`` the bucket is not listed. Without a ``generation`` nothing is indexed yet.
    Objects that were rejected in their present state are left alone. Raises ``Unavailable``.
    """
    with _temporary_comparison() as comparison:
        started = time.monotonic()
        objects = listing.objects if listing else store.list(prefix)
        comparison.take_down(track(objects, "listing the bucket", None))
        if listing:
            comparison.as_of_ms = listing.as_of_ms
        if generation:
            # No key is longer than that, so what is cut off of a prefix decides nothing.
            where = store.where(prefix[:MAX_PREFIX_CHARACTERS])
            moments = track(_moments(index, generation, where), "walking the moments", None)
            comparison.count_moments(index.grid(generation), moments)
            points = index.count(generation, where)
            walk = track(index.scroll(generation, FIELDS, where), "walking the index", points)
            comparison.hold_against(point.payload for point in walk)
            comparison.find_left_moments()
            for part in store.parts(prefix):
                whole = part.removesuffix(store.place(part)[1])  # its bucket
                of_all = whole == prefix
                items = points if of_all else index.count(generation, store.where(whole))
                comparison.weigh_removals(items, part)
        comparison.read_letters(dead_letters, prefix)
        comparison.run = Run(time.time(), time.monotonic() - started, comparison.counts())
        yield comparison


def _moments(index: Index, generation: Generation, where: Filter) -> Iterator[Mapping[str, Any]]:
    """Walk the moments of a generation; one that an older release made has none."""
    try:
        for point in index.scroll(generation.moments, ("key", "state"), where):
            yield point.payload
    except GenerationGone as error:
        log.info("no moments are compared: %s", error)


@contextmanager
def _temporary_comparison() -> Iterator["Comparison"]:
    """Lend an empty comparison; raises ``Unavailable`` when the disk has no room for it."""
    try:
        with closing(sqlite3.connect("")) as database:  # no name: a file that goes with it
            yield Comparison(database)
    except sqlite3.OperationalError as error:
        raise Unavailable(f"the comparison's temporary file: {error}") from error


class Comparison:
    """A bucket's objects and what was found of each, in a table on disk."""

    run: Run

    def __init__(self, database: sqlite3.Connection) -> None:
        """Begin with an empty table in an empty database."""
        self.removals = Removals(lost=0, items=0)
        self.as_of_ms: float = math.inf  # Unix time; what happened since was not listed
        self._database = database
        database.execute("PRAGMA journal_mode = OFF")  # it is never read again
        database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        database.executescript(TABLES)
        self._grid: Grid | None = None

    def take_down(self, objects: Iterable[ObjectInfo]) -> None:
        """Take down every sound, missing until its point is met, and every sidecar."""
        self._database.executemany(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, NULL)",
            (
                (each.key, each.etag, each.modified_ms, Finding.MISSING if sound else None)
                for each in objects
                if (sound := is_audio(each.key)) or is_sidecar(each.key)
            ),
        )

    def count_moments(self, grid: Grid | None, payloads: Iterable[Mapping[str, Any]]) -> None:
        """Count the moments that there are; recordings are to have those of ``grid``."""
        self._grid = grid
        runs = itertools.groupby((each["key"], each["state"]) for each in payloads)
        counted = ((*whose, sum(1 for _ in run)) for whose, run in runs)
        self._database.executemany(COUNTED, counted)

    def find_left_moments(self) -> None:
        """Find moments beside which no point was met: what they are of is to be looked at."""
        self._database.execute(LEFT, (Finding.OUTDATED, Finding.ORPHANED))

    def hold_against(self, payloads: Iterable[Mapping[str, Any]]) -> None:
        """Compare the objects with what the index says of them."""
        for batch in _batches(payloads):
            judged = dict(self._judged(batch))
            for key in self._with_other_moments(batch):
                if judged[key] is Finding.AGREED:
                    judged[key] = Finding.OUTDATED
            for key in self._indexed_since(batch):
                judged[key] = Finding.AGREED
            self._database.executemany(FOUND, judged.items())

    def _indexed_since(self, payloads: list[Mapping[str, Any]]) -> list[str]:
        """Return the keys of points that were written after the bucket was listed."""
        if self.as_of_ms == math.inf:
            return []
        return [each["key"] for each in payloads if each.get("indexed_at", 0) >= self.as_of_ms]

    def _with_other_moments(self, payloads: list[Mapping[str, Any]]) -> Iterator[str]:
        """Yield the keys of points that have not the moments that they are to have."""
        keys = [each["key"] for each in payloads]
        counted = {key: each for key, *each in self._select("moments", "*", "TRUE", keys)}
        self._database.executemany("DELETE FROM moments WHERE key = ?", ((key,) for key in counted))
        for each in payloads:
            count, state = named = moments_named(each, self._grid)
            there = counted.get(each["key"])
            if not names_moments(each, named) or there != ([state, count] if count else None):
                yield each["key"]

    def weigh_removals(self, items: int, prefix: str) -> None:
        """Note how many points under a prefix lost their objects, of all ``items`` of the bucket.

        An index that is still being filled has few points, so the objects count where they are
        more. Each bucket is weighed by itself: of several that one counts that lost the most.
        """
        found = self.counts(prefix)
        lost = found[Finding.ORPHANED]
        weighed = Removals(lost, max(items, sum(found.values()) - lost), prefix)
        self.removals = max(weighed, self.removals, key=lambda each: (each.are_too_many, each.lost))

    def _judged(self, payloads: list[Mapping[str, Any]]) -> list[tuple[str, Finding]]:
        keys = [key for each in payloads for key in (each["key"], *sidecar_keys(each["key"]))]
        objects = self._objects(keys)
        return [(each["key"], _finding(objects, each)) for each in payloads]

    def read_letters(self, dead_letters: DeadLetters, prefix: str) -> None:
        """Leave alone what was rejected as it is; name what was rejected and is gone."""
        for batch in self._missing():
            letters = dead_letters.get(key for key, _ in batch)
            self._note_letters(letters)
            rejected = [
                (key, Finding.REJECTED)
                for key, etag in batch
                if key in letters and (self._is_newer(letters[key]) or _stands(letters[key], etag))
            ]
            self._database.executemany(FOUND, rejected)
        for keys in _batches(filter(is_audio, dead_letters.keys(prefix=prefix))):
            lost = set(keys) - self._objects(keys).keys()
            if self.as_of_ms < math.inf:
                letters = dead_letters.get(lost)
                lost = {key for key in lost if key in letters and not self._is_newer(letters[key])}
            self._database.executemany(FOUND, ((key, Finding.ORPHANED) for key in lost))

    def _is_newer(self, letter: DeadLetter) -> bool:
        """Whether an object was rejected after the bucket was listed."""
        return letter.at * 1000 >= self.as_of_ms

    def _note_letters(self, letters: Mapping[str, DeadLetter]) -> None:
        self._database.executemany(
            "UPDATE objects SET judged = ? WHERE key = ?",
            ((letter.at, key) for key, letter in letters.items()),
        )

    def counts(self, prefix: str = "") -> dict[str, int]:
        """Return how many sounds there are of each finding, of all or under a prefix."""
        counted = self._database.execute(
            "SELECT finding, count(*) FROM objects WHERE finding NOT NULL "
            "AND substr(key, 1, length(?1)) = ?1 GROUP BY finding",
            (prefix,),
        )
        found = Counter(dict(counted))
        return {str(finding): found[finding] for finding in Finding}

    def keys(self, *findings: Finding) -> Iterator[str]:
        """Yield the keys with one of the findings; without any, of all that differ."""
        for finding in findings or DIFFERENT:
            rows = self._database.execute("SELECT key FROM objects WHERE finding = ?", (finding,))
            yield from (key for (key,) in rows)

    def to_queue(self, *, everything: bool = False, remove: bool = False) -> tuple[Finding, ...]:
        """Return which findings are to be synced: those that differ, or ``everything``.

        Where too many points have lost their objects these stay, unless they may be removed.
        """
        chosen = tuple(Finding) if everything else DIFFERENT
        if self.removals.are_too_many and not remove:
            return tuple(each for each in chosen if each is not Finding.ORPHANED)
        return chosen

    def unsettled(
        self,
        keys: Iterable[str],
        payloads: Mapping[str, Mapping[str, Any]],
        letters: Mapping[str, DeadLetter],
    ) -> list[str]:
        """Return which keys neither agree by now with what was listed, nor were judged anew.

        ``payloads`` and ``letters`` are those that there are now, by key.
        """
        names = list(keys)
        agreed = {
            key for key, found in self._judged([*payloads.values()]) if found is Finding.AGREED
        }
        objects, judged = self._objects(names), self._letters_met(names)

        def is_settled(key: str) -> bool:
            letter = letters.get(key)
            if key not in objects:  # nothing may be left of it
                return key not in payloads and letter is None
            judged_anew = letter is not None and letter.at != judged.get(key)
            return key in agreed or judged_anew

        return [key for key in names if not is_settled(key)]

    def _letters_met(self, keys: list[str]) -> dict[str, float]:
        return dict(self._select("objects", "key, judged", "judged NOT NULL", keys))

    def _objects(self, keys: list[str]) -> dict[str, State]:
        rows = self._select("objects", "key, etag, modified", "etag NOT NULL", keys)
        return {key: (etag, modified) for key, etag, modified in rows}

    def _select(self, table: str, columns: str, condition: str, keys: list[str]) -> Iterable[Any]:
        marks = ", ".join("?" * len(keys))
        return self._database.execute(
            f"SELECT {columns} FROM {table} WHERE {condition} AND key IN ({marks})",  # noqa: S608 - our own words and question marks
            keys,
        )

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
    is_right = agrees(payload, etag, next(sidecars, ""), modified)
    return Finding.AGREED if is_right else Finding.OUTDATED


def _stands(letter: DeadLetter, etag: str) -> bool:
    """Whether a letter still speaks of the object as it is now.

    What could not be read says little about the object: an archive is restored, a key is granted.
    """
    if letter.reason is Reason.UNREADABLE and time.time() - letter.at > UNREADABLE_AGAIN_S:
        return False
    return letter.etag == etag


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in lists of ``BATCH``, the last one shorter."""
    remaining = iter(items)
    while batch := list(islice(remaining, BATCH)):
        yield batch
