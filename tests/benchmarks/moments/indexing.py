"""What moments cost a long recording: ``make bench-recordings``.

One recording, made of the example sounds, is indexed again and again under other keys, by turns
without moments and with them, as a worker does it: decoding processes, a device's process, an
embedded index behind HTTP; only the queue is left out. Then the words of all are changed. Times are
the least of all turns but the first, of the wall and of all these processes' CPUs.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console

sys.path.append(str(Path(__file__).parents[2] / "support"))
from devices import listening_at, start_device
from made_sounds import write_wav

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.encoder.starting import DEFAULT_NAME, default_encoder
from audiofuse.core.index.index import Index, open_index
from audiofuse.core.settings import Settings, environment
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.commands.terminal.display import facts_table
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.indexing.decoding.pool import Decoders
from audiofuse.workers.indexing.exchange.client import DeviceClient
from audiofuse.workers.indexing.exchange.slab import Slab
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.indexing.stages import BatchedIndex
from audiofuse.workers.telemetry.names import Lane

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
SLOTS = 64  # as a worker process has by default


def recording(folder: Path, minutes: float) -> Path:
    """Write a WAV file of so many minutes, of all example sounds over and over."""
    pieces = []
    for path in sorted(SOUNDS.rglob("*.wav")):
        with open_recording(path, 60) as sound:
            pieces += list(sound.windows())
    once = np.concatenate(pieces)
    return write_wav(folder / "recording.wav", np.resize(once, round(minutes * 60 * SAMPLE_RATE)))


class Rig:
    """The processes of a worker, and a syncer without moments and one with them."""

    def __init__(self, stack: ExitStack, root: Path) -> None:
        bundle, port = save_bundle(default_encoder(), root, DEFAULT_NAME, ""), free_port()
        settings = Settings(
            home=root, encoder=bundle, device="cpu", qdrant_url=f"http://127.0.0.1:{port}",
            qdrant_api_key="secret",
        )  # fmt: skip
        command = [sys.executable, "-m", "audiofuse", "serve-index", "--port", str(port)]
        index = Part("index", command, os.environ | environment(settings), root / "index.log")
        stack.callback(index.stop)
        listening = stack.enter_context(listening_at(root / "device"))
        device = start_device(settings, listening)
        stack.callback(device.kill)
        slab = Slab(SLOTS)
        client = DeviceClient(root / "device", slab, lambda: 1)
        stack.callback(client.close)
        decoders = Decoders(1, 60, slab)
        stack.callback(decoders.close)
        facts = client.use(bundle.name).result(300)
        self.index = _answering(settings)
        self.generation = self.index.create(bundle.name, facts, facts.grid)
        self.folder = root / "index" / self.generation.moments.collection
        self.bucket = root / "bucket"
        self.bucket.mkdir()
        bucket = BucketSide(
            FolderStore(self.bucket),
            Limits(1e6, 10**11),
            lambda _, path, most_s: decoders.open(path, most_s),
            pause=time.sleep,
        )
        without = IndexSide(BatchedIndex(self.index, self.generation), self.generation)
        encoder = client.on(bundle.name, facts, Lane.LIVE)
        self.syncers = {
            "without moments": Syncer(bucket, without, encoder),
            "with moments": Syncer(bucket, replace(without, grid=facts.grid), encoder),
        }

    @contextmanager
    def timed(self, times: list[tuple[float, float]]) -> Iterator[None]:
        """Note how long something takes: of the wall, and of the CPUs of all processes."""
        started, used = time.perf_counter(), _cpu_s()
        yield
        times.append((time.perf_counter() - started, _cpu_s() - used))


def _answering(settings: Settings) -> Index:
    deadline = time.monotonic() + 60
    index = open_index(settings)
    while time.monotonic() < deadline:
        try:
            index.live()
        except Exception:  # noqa: BLE001 - it has not begun yet
            time.sleep(0.2)
        else:
            break
    return index


def _cpu_s() -> float:
    """Return what this process and its children have used so far, in seconds."""
    me = psutil.Process()
    times = [each.cpu_times() for each in (me, *me.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _best(times: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the least of each, the first time left out."""
    wall, cpu = zip(*times[1:], strict=True)
    return min(wall), min(cpu)


def main() -> None:
    """Index by turns, then change words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="audiofuse-") as temporary, ExitStack() as stack:
        root = Path(temporary)
        rig = Rig(stack, root)
        source = recording(root, options.minutes)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in rig.syncers}
        words: dict[str, list[tuple[float, float]]] = {name: [] for name in rig.syncers}
        turns = range(-1, options.turns)  # the first warms up
        keys = [(name, f"{name} {turn}.wav") for turn in turns for name in rig.syncers]
        for name, key in keys:
            (rig.bucket / key).hardlink_to(source)
            with rig.timed(times[name]):
                rig.syncers[name].sync(key)
        count, stored = rig.index.count(rig.generation.moments), _bytes_in(rig.folder)
        hours = len(turns) * options.minutes / 60
        for name, key in keys:
            (rig.bucket / key).with_suffix(".json").write_text(json.dumps({"title": key}))
            with rig.timed(words[name]):
                rig.syncers[name].sync(key)
        rewritten = _bytes_in(rig.folder)
    plain, cut = _best(times["without moments"]), _best(times["with moments"])
    fused = _best(words["with moments"])
    rows = {
        "recording, minutes": options.minutes,
        "indexed without moments, s": f"{plain[0]:.2f} (CPU {plain[1]:.2f})",
        "indexed with moments, s": f"{cut[0]:.2f} (CPU {cut[1]:.2f})",
        "with : without": f"{cut[0] / plain[0]:.3f} (CPU {cut[1] / plain[1]:.3f})",
        "other words, s": f"{fused[0]:.3f} (CPU {fused[1]:.3f})",
        "indexing : other words": f"{cut[0] / fused[0]:.1f} (CPU {cut[1] / fused[1]:.1f})",
        "moments": count,
        "bytes an hour, embedded index": f"{stored / hours:,.0f}",
        "the same, once all were fused anew": f"{rewritten / hours:,.0f}",
        "bytes a moment": f"{stored / count:,.0f}",
    }
    Console().print(facts_table("moments of a long recording", rows))


if __name__ == "__main__":
    main()
