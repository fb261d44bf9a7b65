"""Has one thing fail in a program of the product, and in all that it starts, when a file orders it.

    PYTHONPATH=tests/proofs/brought_in FAULT=forkless ORDERS=FILE python -m audiofuse worker

What cannot be brought about from outside, at a moment that a scenario chooses, is replaced at the
last call before the operating system or the network; all else is the program as it is.
"""

import errno
import json
import os
import resource
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from audiofuse.core.bundles.registry import Registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.evaluation.scorecards import Scorecards
from audiofuse.core.index import embedded
from audiofuse.core.index.index import Index
from audiofuse.core.storage.files import S3Files
from audiofuse.workers.queue.broker import Dispatcher

DEADLY = 0.125  # of full scale: the first sample of a sound at which the device ends
STEPS: tuple[tuple[type, str], ...] = (
    (Registry, "write"), (Index, "create"), (Index, "promote"), (Index, "drop"),
    (Dispatcher, "sync"), (S3Files, "upload"), (Registry, "_publish_manifest"), (Scorecards, "add"),
)  # fmt: skip


def refuses(orders: Path) -> None:
    """Have Qdrant answer as ordered: ``{"status": 403, "headers": {}, "done": false}``.

    With ``done`` it does what it was asked all the same, as a request does that takes too long.
    """
    create_app = embedded.create_app

    def create_refusing(*arguments: Any) -> FastAPI:
        app = create_app(*arguments)

        def ordered() -> dict[str, Any] | None:
            return json.loads(orders.read_text()) if orders.exists() else None

        @app.middleware("http")
        async def refuse(request: Request, answer: Callable[[Request], Any]) -> Response:
            order = ordered()
            if order is None:
                return await answer(request)
            if order["done"]:
                await answer(request)
            body = {"status": {"error": "so it was ordered"}, "time": 0.0}
            return JSONResponse(body, order["status"], order["headers"])

        return app

    embedded.create_app = create_refusing


def forkless(orders: Path) -> None:
    """Let no process be started while there is an order: the limit of processes is reached."""
    fork = subprocess._fork_exec

    def fork_or_fail(*arguments: Any) -> int:
        if orders.exists():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork(*arguments)

    subprocess._fork_exec = fork_or_fail


def unmounted(orders: Path) -> None:
    """Let the rollout's document be unreadable while there is an order: a mount that is stale."""
    read_bytes = Path.read_bytes

    def read_or_fail(path: Path) -> bytes:
        if path.name.startswith("rollout-") and orders.exists():
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read_bytes(path)

    Path.read_bytes = read_or_fail


def killed(orders: Path) -> None:
    """End as by SIGKILL as soon as the step is taken that is ordered: ``write 1``, the first."""
    name, nth = orders.read_text().split()
    taken: Counter[str] = Counter()

    def killing(take: Callable[..., Any]) -> Callable[..., Any]:
        def take_and_end(*arguments: Any, **options: Any) -> Any:
            result = take(*arguments, **options)
            taken[take.__name__] += 1
            if taken[name] == int(nth):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return take_and_end

    for owner, step in STEPS:
        setattr(owner, step, killing(getattr(owner, step)))


def deadly(_: Path) -> None:
    """End the device's process as soon as it encodes a sound that begins as ``DEADLY`` says."""

    def ending(encode: Any) -> Any:
        def encode_or_end(encoder: Encoder, windows: Any) -> Any:
            if any(window[0] == DEADLY for window in windows):
                os.kill(os.getpid(), signal.SIGKILL)
            return encode(encoder, windows)

        return encode_or_end

    for name in ("encode_windows", "encode_frames"):
        setattr(Encoder, name, ending(getattr(Encoder, name)))


def crowded(_: Path) -> None:
    """Hold as many descriptors as HELD says, before any other is opened."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for _number in range(int(os.environ["HELD"])):
        os.open(os.devnull, os.O_RDONLY)


FAULTS = {each.__name__: each for each in (refuses, forkless, unmounted, killed, deadly, crowded)}


def bring_in() -> None:
    """Bring in the fault that the environment names."""
    FAULTS[os.environ["FAULT"]](Path(os.environ["ORDERS"]))
