"""Servers that tests run for themselves: real ones, and one that answers as it is told."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from audiofuse.core.settings import Settings
from audiofuse.workers.deployment.local import free_port

Access = tuple[str, str, str]  # URL, access key and secret
Say = Callable[[bytes], bytes | None]  # from a request to its answer; none: the connection ends


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


def start_minio(folder: Path, targets: dict[str, str]) -> tuple[Server, Access]:
    """Run MinIO's code (JuiceFS's gateway), its targets given as variables."""
    port = free_port()
    meta = f"sqlite3://{folder}/meta.db"
    data = ["--storage", "file", "--bucket", f"{folder}/data/", "--trash-days", "0"]
    format_ = [script("juicefs"), "format", *data, meta, "volume"]
    subprocess.run(format_, check=True, capture_output=True)
    options = [
        "--no-bgjob", "--multi-buckets", "--keep-etag", "--object-tag", "--object-meta",
        "--cache-dir", f"{folder}/cache", "--log", f"{folder}/juicefs.log",
        "--metrics", f"127.0.0.1:{free_port()}",
    ]  # fmt: skip
    keys = {"MINIO_ROOT_USER": "minio", "MINIO_ROOT_PASSWORD": "minio-secret"}
    command = [script("juicefs"), "gateway", *options, meta, f"127.0.0.1:{port}"]
    server = Server(command, folder / "minio.log", env=os.environ | keys | targets)
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: _listens(f"{url}/minio/health/live"))
    return server, (url, "minio", "minio-secret")


def start_seaweedfs(folder: Path, notification: str) -> tuple[Server, Access]:
    """Run SeaweedFS by a ``notification.toml``."""
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
        script("weed"), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-dir=weed", "-filer",
        "-volume.max=500", "-master.volumeSizeLimitMB=64", "-s3", "-s3.config=s3.json", *options,
    ]  # fmt: skip
    server = Server(command, folder / "weed.log", cwd=folder)
    url = f"http://127.0.0.1:{ports['s3.port']}"
    wait_for(lambda: _listens(url))
    return server, (url, "weed", "weed-secret")


def script(name: str) -> str:
    """Return a program that a package installed beside Python."""
    return str(Path(sys.executable).parent / name)


def _listens(url: str) -> bool:
    try:
        return bool(httpx.get(url, timeout=2))
    except httpx.TransportError:
        return False


class Wire:
    """A server that speaks S3 as a test tells it, byte by byte, and shows what it was sent."""

    def __init__(self, say: Say) -> None:
        """Run it."""
        self.say = say
        self.hangs_up = False  # after each answer, without a word
        self.requests: list[bytes] = []
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file, suppress(OSError):
            request = b""
            for line in file:
                request += line
                if line == b"\r\n":
                    self.requests.append(request)
                    answer = self.say(request)
                    if answer is None:
                        return
                    connection.sendall(answer)
                    request = b""
                    if self.hangs_up:
                        return

    def close(self) -> None:
        """End it, and every connection to it."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for each in self._open:
            each.close()

    @property
    def settings(self) -> Settings:
        """Return settings for a bucket on it."""
        return Settings(
            bucket="s3://sounds", s3_endpoint_url=self.url, s3_access_key_id="a",
            s3_secret_access_key="b",
        )  # fmt: skip
