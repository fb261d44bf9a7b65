"""The worker: the Celery application with its one task, ``sync``.

    python -m celery -A workers.app worker

The encoder is loaded before the first message is taken; a worker that cannot load it does not
start. ``app`` is built on first access, so importing this module does nothing.
"""

import contextlib
import logging
import time
from typing import Any, NoReturn

from celery import Celery, Task, bootsteps
from celery.exceptions import Reject
from celery.signals import setup_logging
from redis import RedisError

from core.bundle import load_encoder
from core.errors import ConfigurationError, Reason, Rejected, Unavailable
from core.index import open_index
from core.items import describes, is_audio, sidecar_keys, sidecar_stem
from core.settings import Settings
from core.store import open_store
from workers.broker import SYNC_TASK, Dispatcher, Lane, connect_redis, create_celery
from workers.dead_letters import DeadLetters, Deliveries
from workers.logs import configure_logging
from workers.sync import Limits, Outcome, Synced, Syncer

log = logging.getLogger(__name__)

MAX_DELIVERIES = 3
PAUSE_S = 1.0  # before a message that cannot be worked on now goes back: bounds how many wait
MISCONFIGURED = 2  # exit code
MAX_BACKOFF_S = 60  # well under the visibility timeout, or waiting messages would be doubled


class SyncTask(Task):  # type: ignore[misc]
    """One message, one key: sync it and decide the message's fate by the error's class."""

    name = SYNC_TASK
    max_retries = None
    syncer: Syncer
    dead_letters: DeadLetters
    deliveries: Deliveries
    dispatcher: Dispatcher

    def run(self, key: str) -> None:
        """Sync one key; a sidecar's key stands for the audio objects it may describe."""
        try:
            if is_audio(key):
                self._sync(key)
            else:
                self._dispatch_described(key)
        except RedisError as error:  # the record could not be kept, so the message must be
            raise Reject(error, requeue=True) from error

    def _dispatch_described(self, sidecar_key: str) -> None:
        try:
            for found in self.syncer.store.list(sidecar_stem(sidecar_key) + "."):
                if describes(sidecar_key, found.key):
                    self.dispatcher.sync(found.key, Lane.LIVE)
        except Unavailable as error:
            self._later(sidecar_key, error)

    def _sync(self, key: str) -> None:
        delivery = self.deliveries.begin(key)  # counted first: the work may kill this process
        if delivery > MAX_DELIVERIES:
            self._give_up(key, f"its worker died {MAX_DELIVERIES} times while working on it")
        else:
            self._attempt(key, delivery)
        self.deliveries.finish(key)

    def _attempt(self, key: str, delivery: int) -> None:
        started = time.monotonic()
        try:
            synced = self.syncer.sync(key)
        except Rejected as error:
            log.warning("%s: rejected, %s", key, error)
            self.dead_letters.add(key, error)
        except Unavailable as error:
            self.deliveries.finish(key)  # not the object's fault
            self._later(key, error)
        except Exception as error:
            log.exception("%s: a bug, delivery %d of %d", key, delivery, MAX_DELIVERIES)
            if delivery < MAX_DELIVERIES:
                raise self.retry(exc=error, countdown=PAUSE_S) from error
            self._give_up(key, f"{type(error).__name__}: {error}")
        else:
            log.info("%s: %s in %.3f s", key, synced.outcome, time.monotonic() - started)
            self._record(key, synced)

    def _give_up(self, key: str, detail: str) -> None:
        log.error("%s: given up, %s", key, detail)
        verdict = Rejected(Reason.BUG, detail)
        with contextlib.suppress(Unavailable):  # then reconcile gives the object another chance
            info = self.syncer.store.head(key)
            verdict.etag = info.etag if info else ""
        self.dead_letters.add(key, verdict)

    def _record(self, key: str, synced: Synced) -> None:
        """Replace what was known to be wrong with this item; an unchanged one keeps its letters."""
        if synced.outcome is Outcome.UNCHANGED:
            return
        self.dead_letters.clear([key, *sidecar_keys(key)])
        for problem_key, problem in synced.problems.items():
            log.warning("%s: %s; the audio is indexed without it", problem_key, problem)
            self.dead_letters.add(problem_key, problem)

    def _later(self, key: str, error: Unavailable) -> NoReturn:
        """Send the message again with back-off; the pause here bounds how many can wait."""
        backoff = min(2.0**self.request.retries, MAX_BACKOFF_S)
        log.warning("%s: again in %.0f s, %s", key, backoff, error)
        time.sleep(PAUSE_S)
        raise self.retry(exc=error, countdown=backoff) from error


class LoadEncoder(bootsteps.StartStopStep):  # type: ignore[misc]
    """Builds what the task needs before the worker takes its first message."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        """Equip the task; an error here ends the worker with a non-zero exit code."""
        try:
            self._equip(worker)
        except ConfigurationError as error:
            log.critical("the worker does not start: %s", error)
            raise SystemExit(MISCONFIGURED) from error

    @staticmethod
    def _equip(worker: Any) -> None:
        settings = Settings()
        task = worker.app.tasks[SYNC_TASK]
        redis = connect_redis(settings)
        task.dead_letters, task.deliveries = DeadLetters(redis), Deliveries(redis)
        task.dispatcher = Dispatcher(worker.app)
        task.syncer = build_syncer(settings)


def build_syncer(settings: Settings) -> Syncer:
    """Load the encoder and connect it to the bucket and the index that the settings name."""
    encoder, version = load_encoder(settings)
    index = open_index(settings)
    live = index.live()
    if live and live.version != version:
        raise ConfigurationError(
            f"the live index was made by encoder {live.version}, AUDIOFUSE_ENCODER is {version}: "
            "what this worker indexed nobody would find"
        )
    generation = index.create(version, encoder)
    limits = Limits(settings.max_duration_s, settings.max_object_bytes)
    return Syncer(open_store(settings), index, generation, encoder, limits)


def create_app(settings: Settings) -> Celery:
    """Return the Celery application with its task and its start-up step."""
    app = create_celery(settings)
    app.register_task(SyncTask())
    app.steps["worker"].add(LoadEncoder)
    setup_logging.connect(lambda **_: configure_logging(settings.log_level), weak=False)
    return app


def __getattr__(name: str) -> Celery:
    """Build ``app`` when it is asked for, which ``celery -A workers.app`` does."""
    if name != "app":
        raise AttributeError(name)
    return create_app(Settings())
