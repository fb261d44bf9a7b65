"""Devices for tests: in threads of this process, or in a process of their own."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from audiofuse.core.settings import Settings, environment
from audiofuse.workers.indexing.device.server import Server

PROCESS = "from audiofuse.workers.indexing.device.__main__ import main\n"


def listening_at(path: Path) -> socket.socket:
    """Return a Unix socket that listens."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen()
    return listening


@contextmanager
def device_in_threads(settings: Settings, path: Path) -> Iterator[Server]:
    """Serve message processes that connect at ``path``."""
    server = Server(settings)
    listening = listening_at(path)

    def serve() -> None:
        with suppress(OSError):
            server.serve(listening)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(10)


def start_device(
    settings: Settings, listening: socket.socket, fault: str = "", options: Sequence[str] = ()
) -> "subprocess.Popen[str]":
    """Start the process of a device, with a ``fault`` that is put into it before it runs."""
    descriptor = listening.fileno()
    script = f"import os, sys\n{fault}\n{PROCESS}main({os.getpid()}, {descriptor})"
    return subprocess.Popen(
        [sys.executable, *options, "-c", script], env=os.environ | environment(settings),
        pass_fds=[descriptor], text=True,
    )  # fmt: skip
