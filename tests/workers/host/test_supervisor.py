"""A worker's host: what ends is made up for, what stops stops in order, and it tells as one."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from bundles import saved_bundle
from fastapi import FastAPI
from pydantic import SecretStr
from redis import Redis

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.index import embedded
from audiofuse.core.index.index import connect_embedded, open_index
from audiofuse.core.settings import Settings, environment
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.host import supervisor
from audiofuse.workers.queue.broker import Dispatcher, create_celery, open_lanes
from audiofuse.workers.telemetry.names import Lane

Eventually = Callable[..., Any]
OWL = Path(__file__).parents[3] / "examples" / "sounds" / "animals" / "owl.wav"
PROCESSES = 2
MOST_MIB = 150  # of a process that takes messages
pytestmark = pytest.mark.timeout(300)  # they wait for progress, however slow the machine


class Host:
    """A worker with two processes that take messages, beside a bucket and an index."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.settings = settings
        self.lanes = open_lanes(settings)
        self.root = root
        self._index = open_index(settings)
        self._dispatcher = Dispatcher(create_celery(settings))
        command = [sys.executable, "-m", "audiofuse", "worker"]
        variables = os.environ | environment(settings)
        self.part = Part("worker", command, variables, root / "log")

    def log(self) -> str:
        """Return what its processes have said."""
        return (self.root / "log").read_text()

    def processes(self, module: str) -> list[psutil.Process]:
        """Return those that run a module, the oldest first."""
        children = psutil.Process(self.part.process.pid).children()
        found = [each for each in children if module in each.cmdline()]
        return sorted(found, key=lambda each: each.create_time())

    def takers(self) -> list[psutil.Process]:
        """Return the processes that take messages."""
        return self.processes(supervisor.TAKER)

    def device(self) -> psutil.Process:
        """Return the device's process."""
        (found,) = self.processes(supervisor.DEVICE)
        return found

    def send(self, name: str, count: int) -> set[str]:
        """Put sounds and send their messages; return their keys."""
        keys = {f"{name}-{number}.wav" for number in range(count)}
        for key in sorted(keys):
            shutil.copy(OWL, Path(self.settings.bucket) / key)
            self._dispatcher.sync(key, Lane.LIVE)
        return keys

    def indexed(self) -> set[str]:
        """Return the keys of all points."""
        live = self._index.live()
        return (
            {each.payload["key"] for each in self._index.scroll(live, ["key"])} if live else set()
        )

    def rested(self) -> bool:
        """Whether no message waits or is in hand."""
        return not any(self.lanes.lengths().values())

    def metrics(self) -> str:
        """Return what the host tells Prometheus."""
        return httpx.get(f"http://{self.settings.metrics_listen}/metrics").text

    def told(self, name: str) -> float:
        """Return the sum of a metric's series."""
        values = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.metrics(), re.MULTILINE)
        return sum(map(float, values))


@pytest.fixture(scope="module")
def host(
    valkey_url: str, tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Encoder,
    serving: Callable[[FastAPI], AbstractContextManager[str]], eventually: Eventually,
) -> Iterator[Host]:  # fmt: skip
    """Run one for all tests; the last of them stops it."""
    Redis.from_url(valkey_url).flushdb()
    root = tmp_path_factory.mktemp("host")
    (root / "bucket").mkdir()
    client = connect_embedded()
    with serving(embedded.create_app(client, "key")) as url:
        settings = Settings(
            bucket=str(root / "bucket"),
            broker_url=SecretStr(valkey_url),
            qdrant_url=url,
            qdrant_api_key=SecretStr("key"),
            encoder=saved_bundle(tiny_encoder, root / "encoders", "tiny", "card"),
            device="cpu",
            index_name="host",
            processes=PROCESSES,
            decoders=PROCESSES,
            in_hand=8,
            redelivery_s=5,
            metrics_listen=f"127.0.0.1:{free_port()}",
        )
        running = Host(root, settings)
        eventually(lambda: running.log().count("batches of") == PROCESSES, 120)
        yield running
        running.part.stop()
    client.close()


def test_its_processes_share_work_and_device(host: Host, eventually: Eventually) -> None:
    """Each takes messages, the device encodes for both, and one address tells of all."""
    keys = host.send("shared", 40)
    eventually(lambda: host.rested() and host.indexed() >= keys)
    assert host.told("audiofuse_syncs_total") == len(keys)
    assert 0 < host.told("audiofuse_batch_fill_ratio_count") < len(keys)
    assert host.told("audiofuse_in_hand_messages") == 0
    assert len(host.takers()) == PROCESSES
    assert {len(each.children()) for each in host.takers()} == {1}  # of two decoders for the host


def test_what_takes_messages_is_small(host: Host) -> None:
    """Such a process runs no encoder: it has no library that could, and little memory."""
    for each in host.takers():
        mapped = {Path(area.path).name for area in each.memory_maps()}
        assert not [name for name in mapped if re.match(r"libtorch|.*onnxruntime", name)]
        assert each.memory_full_info().uss < MOST_MIB * 2**20


def test_a_device_that_ends_is_started_again(host: Host, eventually: Eventually) -> None:
    """Messages wait for the next and nothing is delivered again, nor counted twice."""
    before = host.told("audiofuse_syncs_total")
    first = host.device()
    first.suspend()  # so that it has something in hand when it ends
    keys = host.send("device", 30)
    eventually(lambda: host.lanes.lengths()["live"] <= len(keys) - 2)
    first.kill()
    eventually(lambda: host.rested() and host.indexed() >= keys)
    assert host.device().pid != first.pid
    assert "device ended with code -9" in host.log()
    assert host.told("audiofuse_redeliveries_total") == 0
    assert host.told("audiofuse_syncs_total") >= before + len(keys)


def test_a_process_that_takes_messages_and_ends_costs_what_it_had(
    host: Host, eventually: Eventually
) -> None:
    """Another comes in its place, the other goes on, and what it had in hand comes again."""
    before = host.told("audiofuse_syncs_total")
    first, other = host.takers()
    decoders = first.children()
    first.suspend()
    keys = host.send("taker", 30)
    eventually(lambda: host.lanes.lengths()["live"] == 0)
    first.kill()
    eventually(lambda: host.rested() and host.indexed() >= keys)
    eventually(lambda: len(host.takers()) == PROCESSES)
    assert other in host.takers()
    assert host.told("audiofuse_syncs_total") >= before  # what it had counted is not forgotten
    _, alive = psutil.wait_procs(decoders, timeout=10)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def test_it_stops_in_order(host: Host, eventually: Eventually) -> None:
    """After SIGTERM what is in hand is finished or handed back, then the device stops, and all."""
    takers, device = host.takers(), host.device()
    host.send("stopped", 30)
    host.part.process.send_signal(signal.SIGTERM)
    eventually(lambda: host.part.process.poll() is not None)
    assert host.part.process.returncode == 0
    assert host.lanes.lengths()["unacknowledged"] == 0
    assert host.log().rindex("messages go back") < host.log().rindex("the device stops")
    assert not [each for each in (*takers, device) if each.is_running()]


@pytest.mark.parametrize(
    ("device", "cpus", "processes"), [("cpu", 2, 1), ("cpu", 16, 4), ("cuda", 16, 8)]
)
def test_how_many_take_messages_follows_from_the_cpus(
    monkeypatch: pytest.MonkeyPatch, device: Any, cpus: int, processes: int
) -> None:
    """A GPU is fed by more of them than a CPU that encodes itself; what is set counts."""
    monkeypatch.setattr(supervisor, "usable_cpus", lambda: cpus)
    assert supervisor.processes_for(Settings(device=device)) == processes
    assert supervisor.processes_for(Settings(device=device, processes=3)) == 3
