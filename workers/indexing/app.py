"""The worker as Celery runs it: the application with its one task, ``sync``.

    python -m celery -A audiofuse.workers.indexing.app worker

    Celery takes messages ──> a thread for each ──> task ──> retry policy ──> sync (sync.py)
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
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from celery import Celery, Task, bootsteps
from celery.app import trace
from celery.concurrency.thread import TaskPool as Threads
from celery.exceptions import InvalidTaskError, Reject
from celery.signals import celeryd_init, setup_logging, task_revoked, worker_init
from celery.worker import state

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import Settings
from audiofuse.core.threads import BROKEN
from audiofuse.workers.indexing.build import build_worker
from audiofuse.workers.indexing.worker import Worker
from audiofuse.workers.queue.broker import create_celery
from audiofuse.workers.queue.consumer import Consumer
from audiofuse.workers.queue.lanes import SENT, SYNC_TASK
from audiofuse.workers.queue.pool import Pool
from audiofuse.workers.telemetry.logs import configure_logging
from audiofuse.workers.telemetry.metrics import SYNCS, Process, serve_metrics
from audiofuse.workers.telemetry.names import Lane
from audiofuse.workers.telemetry.tracing import span, start_tracing

log = logging.getLogger(__name__)

MISCONFIGURED = 2  # exit code
SIGNALS_S = 0.2  # seconds between two looks for a signal while it waits; raised, it ends later
NO_LIMITS = "threads cannot be ended, so there is no time limit; what hangs ends the process"
NO_CHILDREN = "the pool is threads of one process"
REFUSED = {  # options of celery's command line
    "time_limit": NO_LIMITS,
    "soft_time_limit": NO_LIMITS,
    "autoscale": "set AUDIOFUSE_IN_HAND, or start more workers",
    "disable_prefetch": "what is taken is worked on; set AUDIOFUSE_IN_HAND",
    "max_tasks_per_child": NO_CHILDREN,
    "max_memory_per_child": NO_CHILDREN,
    "purge": "what was told of is not forgotten; celery purge does",
    "beat": "nothing is scheduled",
}
REFUSED_OF_MESSAGES = {  # headers: what a sender may ask for
    "timelimit": NO_LIMITS,
    "eta": "a key is synced as it is when its turn comes, which is never too early",
}


class SyncTask(Task):  # type: ignore[misc]
    """Sync a key, in one of the worker's threads; what is returned is what came of it."""

    name = SYNC_TASK
    acks_late = True
    ignore_result = True
    worker: Worker | None = None  # until it has started

    @property
    def time_limit(self) -> None:
        """None: setting one, as a command of Celery's does, is refused."""

    @time_limit.setter
    def time_limit(self, seconds: float | None) -> None:
        raise NotImplementedError(NO_LIMITS)

    def run(self, key: str) -> str:
        """Settle a message; ``Reject`` hands it back, because the worker stops."""
        assert self.worker is not None
        about = vars(self.request)  # the message's headers are in it
        lane = Lane(about["delivery_info"]["routing_key"])
        try:
            with span("sync", about, key=key, lane=lane):
                outcome = self.worker.settle(key, lane, about.get(SENT))
        except Exception as error:
            # To Celery it would be a task that failed and is done. What is unforeseen ends the
            # process instead, and the message comes again.
            raise SystemExit(BROKEN) from error
        if outcome is None:
            raise Reject("the worker stops", requeue=True)
        return outcome.value

    def start_strategy(self, app: Celery, consumer: Any, **options: Any) -> Callable[..., None]:
        """Return what Celery calls for each message that it takes, in its own thread."""
        handle = super().start_strategy(app, consumer, **options)

        def take(message: Any, *rest: Any) -> None:
            _check(message)
            handle(message, *rest)

        return take


def _check(message: Any) -> None:
    """Refuse a message that is none of ours, and what it asks for that cannot be had."""
    try:
        positional, named, _ = message.payload
        key = named["key"]
        Lane(message.delivery_info["routing_key"])
        is_ours = isinstance(key, str) and len(named) == 1 and not positional
    except (KeyError, TypeError, ValueError):
        is_ours = False
    if not (is_ours and message.headers.get("id")):
        raise InvalidTaskError(f"a message must name a key, in a lane: {message.payload!r:.200}")
    for option, why in REFUSED_OF_MESSAGES.items():
        asked, message.headers[option] = message.headers.get(option), None
        if asked not in (None, [None, None]):
            log.warning("%s: %s=%s is not kept: %s", key, option, asked, why)


class RunWorker(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts the worker before Celery takes the first message, and ends it after the last."""

    requires = ("celery.worker.components:Pool",)

    def start(self, celery_worker: Any) -> None:
        """Start; an error of configuration ends the process with exit code 2."""
        app, task = celery_worker.app, celery_worker.app.tasks[SYNC_TASK]
        settings = Settings().model_copy(update={"in_hand": celery_worker.concurrency})
        try:
            task.worker = build_worker(settings, app, celery_worker.consumer, _pause)
            celery_worker.pool.take = task.worker.take
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
    app.conf.worker_consumer = Consumer
    setup_logging.connect(lambda **_: configure_logging(settings), weak=False)
    celeryd_init.connect(lambda options, **_: _refuse(options), weak=False)
    worker_init.connect(_take_our_pool, weak=False)
    task_revoked.connect(_tell_revoked, weak=False)
    # Each message that is handed back when the worker stops would be a line with a traceback.
    logging.getLogger(trace.__name__).addFilter(_is_no_rejection)
    return app


def _refuse(options: Mapping[str, Any]) -> None:
    """End the process if its command line asks for what this worker has not."""
    pool = options.get("pool")
    if pool not in {None, Threads}:
        _exit(f"-P {getattr(pool, '__module__', pool)}: its pool is threads")
    if options.get("concurrency") == "auto":
        _exit("-c auto: -c is how many messages are in hand, as AUDIOFUSE_IN_HAND is")
    queues = {*(options.get("queues") or ()), *(options.get("exclude_queues") or ())}
    if strange := queues - set(Lane):
        _exit(f"-Q or -X {','.join(sorted(strange))}: its queues are {' and '.join(Lane)}")
    if options.get("prefetch_multiplier", 1) > 1:
        _exit("--prefetch-multiplier: what is taken is worked on; set AUDIOFUSE_IN_HAND")
    for option, why in REFUSED.items():
        if options.get(option):
            _exit(f"--{option.replace('_', '-')}: {why}")


def _exit(reason: str) -> NoReturn:
    log.critical("the worker does not start: %s", reason)
    raise SystemExit(MISCONFIGURED)


def _take_our_pool(sender: Any, **_: Any) -> None:
    sender.pool_cls = Pool


def _tell_revoked(request: Any, expired: bool, **_: Any) -> None:  # noqa: FBT001 - by name
    """Tell of a message that Celery does not want to be worked on any more."""
    key, lane = request.kwargs["key"], Lane(request.delivery_info["routing_key"])
    SYNCS.labels(lane, "revoked").inc()
    log.warning(
        "%s: %s, so it is not looked at; reconcile finds what is missed", key,
        "its message expired" if expired else "revoked", extra={"outcome": "revoked"},
    )  # fmt: skip


def _is_no_rejection(record: logging.LogRecord) -> bool:
    return getattr(record, "data", {}).get("description") != "rejected"


def __getattr__(name: str) -> Celery:
    """Build ``app`` when it is asked for, which ``celery -A`` does."""
    if name != "app":
        raise AttributeError(name)
    settings = Settings()
    configure_logging(settings)  # Celery asks for it only after its first warnings
    return create_app(settings)
