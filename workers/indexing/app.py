"""The worker as Celery runs it: the application with its one task, ``sync``.

    python -m celery -A audiofuse.workers.indexing.app worker

    Celery takes messages ──> a thread for each ──> retry policy ──> sync (sync.py)
           ^                                                          │  │  │
           │                            decoders (processes) <────────┘  │  └──> index, in batches
           └── acknowledges each when its thread is done       device <──┘
                                                     (one thread, full batches)

The live encoder is loaded before the first message is taken; a worker that cannot load it does not
start, and one whose index or registry is away waits. Others come and go with a rollout:
``versions.py``. ``app`` is built on first access, so importing this module does nothing.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, bootsteps
from celery.exceptions import InvalidTaskError
from celery.signals import setup_logging
from celery.worker import state

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import Settings
from audiofuse.workers.indexing.build import build_worker
from audiofuse.workers.indexing.message_threads import Delivery
from audiofuse.workers.indexing.worker import Worker
from audiofuse.workers.queue.broker import create_celery
from audiofuse.workers.queue.lanes import SENT, SYNC_TASK
from audiofuse.workers.telemetry.logs import configure_logging
from audiofuse.workers.telemetry.metrics import Process, serve_metrics
from audiofuse.workers.telemetry.names import Lane
from audiofuse.workers.telemetry.tracing import start_tracing

log = logging.getLogger(__name__)

MISCONFIGURED = 2  # exit code
SIGNALS_S = 0.2  # seconds between two looks for a signal while it waits; raised, it ends later


class SyncTask(Task):  # type: ignore[misc]
    """A message names a key. It never runs as a task: a thread of the worker takes it."""

    name = SYNC_TASK
    worker: Worker | None = None  # until it has started

    def run(self, key: str) -> None:
        """Refuse: only the worker's threads can sync."""
        raise NotImplementedError(key)

    def start_strategy(self, app: Celery, consumer: Any, **_: Any) -> Callable[..., None]:
        """Return what Celery calls for each message that it takes, in its own thread."""
        del app, consumer
        assert self.worker is not None
        worker = self.worker

        def take(message: Any, *_: object) -> None:
            worker.take(_delivery(message))

        return take


def _delivery(message: Any) -> Delivery:
    try:
        _, arguments, _ = message.payload
        lane, sent = Lane(message.delivery_info["routing_key"]), message.headers.get(SENT)
        return Delivery(str(arguments["key"]), lane, message, message.headers, sent)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidTaskError(f"a message must name a key, in a lane: {error!r}") from error


class RunWorker(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts the worker before Celery takes the first message, and ends it after the last."""

    requires = ("celery.worker.components:Pool",)

    def start(self, celery_worker: Any) -> None:
        """Start; an error of configuration ends the process with exit code 2."""
        task, settings = celery_worker.app.tasks[SYNC_TASK], Settings()
        try:
            task.worker = build_worker(settings, celery_worker.app, celery_worker.hub, _pause)
            serve_metrics(settings, Process.WORKER)
            start_tracing(settings, Process.WORKER)
        except ConfigurationError as error:
            log.critical("the worker does not start: %s", error)
            raise SystemExit(MISCONFIGURED) from error

    def stop(self, celery_worker: Any) -> None:
        """Stop; Celery has stopped taking messages, or was told to before it took any."""
        if worker := celery_worker.app.tasks[SYNC_TASK].worker:
            worker.stop()


def _pause(seconds: float) -> None:
    """Wait; a signal that ends Celery, which notes it, ends this."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state.maybe_shutdown()
        time.sleep(SIGNALS_S)


def create_app(settings: Settings) -> Celery:
    """Return the Celery application with its task and its start-up step."""
    app = create_celery(settings)
    app.register_task(SyncTask())
    app.steps["worker"].add(RunWorker)
    setup_logging.connect(lambda **_: configure_logging(settings), weak=False)
    return app


def __getattr__(name: str) -> Celery:
    """Build ``app`` when it is asked for, which ``celery -A`` does."""
    if name != "app":
        raise AttributeError(name)
    settings = Settings()
    configure_logging(settings)  # Celery asks for it only after its first warnings
    return create_app(settings)
