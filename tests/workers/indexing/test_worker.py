"""The worker as a process: it loses nothing, however it ends."""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from bundles import saved_bundle
from devices import device_in_threads, listening_at, start_device
from redis import Redis

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.bundles.loading import load_folder
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError, Unavailable
from audiofuse.core.index.index import Index, Point, connect_embedded, open_index
from audiofuse.core.items import point_id
from audiofuse.core.settings import PREFIX, Settings, environment
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.host.supervisor import MISCONFIGURED
from audiofuse.workers.indexing.build import live_generation
from audiofuse.workers.indexing.exchange.client import DeviceClient
from audiofuse.workers.indexing.exchange.slab import Slab
from audiofuse.workers.queue.broker import Dispatcher, create_celery
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.queue.lanes import Lanes
from audiofuse.workers.queue.outages import Outages
from audiofuse.workers.telemetry.names import Lane

Eventually = Callable[..., Any]
SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
SHORT = [  # real sounds of up to 3 s in every format
    SOUNDS / name
    for name in (
        "animals/owl.wav", "animals/duck-quack.wav", "animals/crow.flac", "animals/sea-lion.mp3",
        "home/typing.mp3", "music/bell.opus", "music/gong.ogg", "music/tabla-loop.m4a",
    )
]  # fmt: skip
WORKER = [sys.executable, "-m", "audiofuse", "worker"]
REDELIVERY_S = 5
pytestmark = pytest.mark.timeout(900)  # they wait for progress, however slow the machine
SOME = 100  # sounds, more than a worker takes in hand at once


class Rig:
    """Real worker processes between a bucket folder, the suite's Valkey and an embedded Qdrant."""

    def __init__(self, root: Path, redis: Redis, settings: Settings) -> None:
        self.root = root
        self.lanes = Lanes(redis, settings.index_name)
        self.settings = settings
        self.bucket = Path(settings.bucket)
        self.index = open_index(settings)
        self.letters = DeadLetters(redis, settings.index_name)
        self._dispatcher = Dispatcher(create_celery(settings))
        self._parts: list[Part] = []

    def start(self, **changes: Any) -> Part:
        """Start a worker."""
        settings = Settings(**(self.settings.model_dump(exclude_unset=True) | changes))
        log = self.root / f"worker-{len(self._parts)}.log"
        variables = os.environ | environment(settings)
        self._parts.append(Part("worker", WORKER, variables, log))
        return self._parts[-1]

    def put(self, key: str, source: Path | bytes) -> None:
        """Write an object, without telling."""
        path = self.bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source if isinstance(source, bytes) else source.read_bytes())

    def send(self, *keys: str, lane: Lane = Lane.LIVE) -> None:
        """Send a message for each key."""
        for key in keys:
            self._dispatcher.sync(key, lane)

    def fill(self, count: int) -> list[str]:
        """Put many sounds and send their messages; return their keys."""
        keys = [f"{number:04}{SHORT[number % len(SHORT)].suffix}" for number in range(count)]
        for number, key in enumerate(keys):
            self.put(key, SHORT[number % len(SHORT)])
        self.send(*keys)
        return keys

    def points(self) -> dict[str, Point]:
        """Return what is indexed, by key, with vectors."""
        live = self.index.live()
        if live is None:
            return {}
        ids = [point.id for point in self.index.scroll(live, ["key"])]
        found = self.index.get(live, ids, vectors=True).values()
        return {point.payload["key"]: point for point in found}

    def idle(self) -> bool:
        """Whether no message waits or is in hand."""
        return not any(self.lanes.lengths().values())

    def progress(self) -> object:
        """Return what changes as long as workers start, or get on with their messages."""
        starting = [
            psutil.Process(part.process.pid).cpu_times()
            for number, part in enumerate(self._parts)
            if "batches of" not in self.log(number)
        ]
        return starting, len(self.points()), self.lanes.lengths()

    def log(self, number: int) -> str:
        """Return what the worker that was started as this one, from 0, has logged."""
        return (self.root / f"worker-{number}.log").read_text()

    def stop(self) -> None:
        """Kill whatever still runs."""
        for part in self._parts:
            part.process.kill()
            part.process.wait()


@contextmanager
def serving_index(home: Path, port: int) -> Iterator[Part]:
    """Run the owner of an embedded Qdrant."""
    home.mkdir()
    variables = os.environ | {PREFIX + "HOME": str(home), PREFIX + "QDRANT_API_KEY": "secret"}
    command = [sys.executable, "-m", "audiofuse.workers.commands.main", "serve-index"]
    part = Part("index", [*command, "--port", str(port)], variables, home / "log")
    yield part
    part.stop()


@pytest.fixture(scope="module")
def index_url(tmp_path_factory: pytest.TempPathFactory, eventually: Eventually) -> Iterator[str]:
    """Run the owner of an embedded Qdrant and return its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    index = open_index(Settings(qdrant_url=url, qdrant_api_key="secret"))
    with serving_index(tmp_path_factory.mktemp("index") / "home", port) as part:
        eventually(lambda: _answers(index), moves=psutil.Process(part.process.pid).cpu_times)
        yield url


@pytest.fixture
def rig(
    tmp_path: Path, redis: Redis, valkey_url: str, index_url: str, tiny_encoder: Encoder
) -> Iterator[Rig]:
    """Return a rig with an empty bucket and an index of its own; no worker runs yet."""
    (tmp_path / "bucket").mkdir()
    settings = Settings(
        bucket=str(tmp_path / "bucket"),
        broker_url=valkey_url,
        qdrant_url=index_url,
        qdrant_api_key="secret",
        index_name=f"index-{random.randrange(10**9)}",
        encoder=saved_bundle(tiny_encoder, tmp_path, "tiny", ""),
        redelivery_s=REDELIVERY_S,
        decoders=2,
        in_hand=40,
    )
    running = Rig(tmp_path, redis, settings)
    yield running
    running.stop()


def _answers(index: Index) -> bool:
    try:
        index.live()
    except Unavailable:
        return False
    return True


def _assert_vectors(rig: Rig, keys: list[str]) -> None:
    """Each key has one point, and its audio vector is the one that hearing it alone gives."""
    assert rig.settings.encoder is not None
    encoder = load_folder(rig.settings, rig.settings.encoder)
    points = rig.points()
    assert sorted(points) == sorted(keys)
    for key in keys[: len(SHORT)]:
        with open_recording(rig.bucket / key, 60) as recording:
            alone = encoder.encode_audio(recording.windows()).pooled[0].tolist()
        assert list(points[key].audio) == pytest.approx(alone, rel=1e-5, abs=1e-5)
        assert points[key].id == str(point_id(rig.bucket.name, key))


def test_messages_share_batches_and_keep_their_fates(rig: Rig, eventually: Eventually) -> None:
    """Many messages, bad ones among them: each sound its own vector, each bad one its letter."""
    good = rig.fill(40)
    bad = {"empty.wav": b"", "text.mp3": b"no sound", "cut.flac": SHORT[2].read_bytes()[:9000]}
    for key, content in bad.items():
        rig.put(key, content)
    rig.put("long.wav", SOUNDS / "animals/crickets.wav")
    rig.put("0000.wav.json", b'{"title": "An owl"}')
    rig.send(*bad, "long.wav", "0001.json", *good[:5])  # duplicates, and a sidecar that is not
    rig.start()
    eventually(lambda: rig.idle() and len(rig.points()) == 41, moves=rig.progress)
    _assert_vectors(rig, [*good, "long.wav"])
    assert rig.points()["0000.wav"].payload["title"] == "An owl"
    letters = {letter.key: letter.reason for letter in rig.letters.latest(10)}
    assert letters == {"empty.wav": "empty", "text.mp3": "not_audio", "cut.flac": "damaged"}


def test_a_worker_that_is_asked_to_stop_loses_nothing(rig: Rig, eventually: Eventually) -> None:
    """After SIGTERM in full swing the worker exits with 0; another one does what is left."""
    keys = rig.fill(SOME)
    worker = rig.start()
    eventually(lambda: len(rig.points()) > 5, moves=rig.progress)
    worker.process.terminate()
    eventually(
        lambda: worker.process.poll() is not None,
        moves=psutil.Process(worker.process.pid).cpu_times,
    )
    assert worker.process.returncode == 0
    lengths = rig.lanes.lengths()
    assert lengths["unacknowledged"] == 0  # handed back at once, not after the timeout
    assert lengths["live"] + len(rig.points()) >= SOME
    rig.start()
    eventually(lambda: rig.idle() and len(rig.points()) == SOME, moves=rig.progress)
    _assert_vectors(rig, keys)


def test_a_killed_worker_loses_nothing(rig: Rig, eventually: Eventually) -> None:
    """After SIGKILL every message in hand is worked on again, soon after the timeout."""
    keys = rig.fill(SOME)
    worker = rig.start()
    eventually(lambda: len(rig.points()) > 5, moves=rig.progress)
    decoders = psutil.Process(worker.process.pid).children()
    worker.process.kill()
    worker.process.wait()
    assert rig.lanes.lengths()["unacknowledged"] > 0
    listen = f"127.0.0.1:{free_port()}"
    rig.start(metrics_listen=listen)
    eventually(lambda: rig.idle() and len(rig.points()) == SOME, moves=rig.progress)
    _assert_vectors(rig, keys)
    told = httpx.get(f"http://{listen}/metrics").text
    assert re.search(r'^audiofuse_redeliveries_total\{lane="live"\} [1-9]', told, re.MULTILINE)
    _, alive = psutil.wait_procs(decoders, timeout=5)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def test_what_is_worked_on_for_long_is_not_delivered_twice(
    rig: Rig, eventually: Eventually
) -> None:
    """A message outlives the visibility timeout in hand: the worker keeps its hold on it."""
    worker = rig.start()
    eventually(lambda: "batches of" in rig.log(0), moves=rig.progress)
    shutil.move(rig.bucket, rig.bucket.with_name("away"))
    rig.send("owl.wav")
    eventually(lambda: "again in" in rig.log(0), moves=rig.progress)
    for _ in range(12):  # 6 s
        assert rig.lanes.lengths() == {"live": 0, "backfill": 0, "unacknowledged": 1}
        time.sleep(0.5)
    shutil.move(rig.bucket.with_name("away"), rig.bucket)
    rig.put("owl.wav", SHORT[0])
    eventually(lambda: rig.idle() and "owl.wav" in rig.points(), moves=rig.progress)
    worker.process.terminate()
    assert worker.process.wait(120) == 0


def test_a_worker_whose_consumer_hangs_ends(rig: Rig, tmp_path: Path) -> None:
    """Messages wait and the process lives, but asks for none: it ends, with nothing in hand."""
    rig.fill(5)
    script = (
        "import os\n"
        "from audiofuse.workers.queue import transport\n"
        "transport.Channel._brpop_start = lambda *_: None\n"
        "from audiofuse.workers.indexing import watchdog\n"
        "watchdog.STARVED_S = 2.0\n"
        "from audiofuse.workers.host.taker import main\n"
        "main(os.getppid())\n"
    )
    settings = rig.settings.model_copy(update={"device_socket": tmp_path / "device"})
    with device_in_threads(settings, tmp_path / "device"):
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | environment(settings),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 70
    assert "5 messages wait, and for 2 s none was taken" in done.stderr
    assert rig.lanes.lengths() == {"live": 5, "backfill": 0, "unacknowledged": 0}


def test_a_device_whose_thread_dies_ends(rig: Rig, tmp_path: Path) -> None:
    """A device's process that lost its stage ends with a code of its own; whoever asks is told."""
    fault = (
        "from audiofuse.workers.indexing.device import device\n"
        "device.Device._encode = lambda *_: sys.exit('the device is gone')"
    )
    assert rig.settings.encoder
    version = rig.settings.encoder.name
    with listening_at(tmp_path / "device") as listening:
        process = start_device(rig.settings, listening, fault)
        with closing(DeviceClient(tmp_path / "device", Slab(1), int)) as device:
            encoder = device.on(version, device.use(version).result(60), Lane.LIVE)
            with pytest.raises(Unavailable, match="the device's process ended"):
                encoder.encode("a.wav", [np.full(32_000, 0.1, np.float32)], "")
        assert process.wait(60) == 70


def test_cuda_that_is_asked_for_and_absent_is_refused(rig: Rig) -> None:
    """A host that was told to use one never runs on the CPU unseen: it ends with the reason."""
    variables = os.environ | environment(rig.settings)
    variables |= {PREFIX + "DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": "", PREFIX + "PROCESSES": "1"}
    done = subprocess.run(WORKER, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == MISCONFIGURED
    assert "AUDIOFUSE_DEVICE is cuda, but PyTorch finds no usable GPU" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_for_another_encoder_does_not_start(tiny_encoder: Encoder) -> None:
    """A worker never fills an index that nobody asks: its encoder must be the live one's."""
    index = Index(connect_embedded(), "audiofuse")
    index.create("other-111111", tiny_encoder)
    with pytest.raises(ConfigurationError, match="other-111111"):
        live_generation(index, "tiny-000000", tiny_encoder, None)


@pytest.mark.parametrize(
    "command",
    ["audiofuse.workers.commands.main worker", "celery -A audiofuse.workers.indexing.app worker"],
)
def test_a_misconfigured_worker_exits_with_one_clear_error(command: str) -> None:
    """Without an encoder the worker ends before it takes a message, exit code 2, no traceback."""
    variables = os.environ | {PREFIX + "BUCKET": "s3://sounds"}
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "the worker does not start: no encoder is set" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_whose_index_is_away_waits_for_it(
    rig: Rig, redis: Redis, tmp_path: Path, eventually: Eventually
) -> None:
    """It says once what it waits for, status shows it; it begins then, or ends when it is asked."""
    port = free_port()
    rig.settings = rig.settings.model_copy(update={"qdrant_url": f"http://127.0.0.1:{port}"})
    stopped, waiting = rig.start(), rig.start()

    def told() -> set[str]:
        return set(redis.hgetall(f"{rig.settings.index_name}:outages").values())  # type: ignore[arg-type, union-attr]

    first = eventually(lambda: len(told()) == 2 and told(), moves=rig.progress)
    eventually(lambda: not first & told())  # each has tried again
    outages = Outages(redis, rig.settings.index_name)
    assert all("Qdrant does not answer" in each.error for each in outages.current())
    stopped.process.terminate()
    assert stopped.process.wait(60) == 0
    assert "Traceback" not in rig.log(0)
    with serving_index(tmp_path / "index", port):
        eventually(
            lambda: "batches of" in rig.log(1), moves=psutil.Process(waiting.process.pid).cpu_times
        )
        waiting.stop()
    assert rig.log(1).count("the worker waits") == 1
    assert str(waiting.process.pid) not in " ".join(each.worker for each in outages.current())


def test_a_message_that_names_no_key_is_dropped(rig: Rig, eventually: Eventually) -> None:
    """What no intake of ours sent does not stop the worker, nor come back."""
    create_celery(rig.settings).send_task("sync", args=["odd"], queue="live")
    keys = rig.fill(1)
    rig.start()
    eventually(lambda: rig.idle() and list(rig.points()) == keys, moves=rig.progress)
    assert "must name a key" in rig.log(0)
