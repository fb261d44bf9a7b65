"""The worker: the Celery application with its one task, ``sync``.

    python -m celery -A audiofuse.workers.indexing.app worker

    Celery takes messages ──> crew: a thread for each ──> fates ──> sync (workers/indexing/sync.py)
           ^                                                          │  │  │
           │                            decoders (processes) <────────┘  │  └──> index, combined
           └── acknowledges each when its thread is done       device <──┘
                                                     (one thread, full batches)

The live encoder is loaded before the first message is taken; a worker that cannot load it does not
start. Others come and go with a rollout: ``versions.py``. ``app`` is built on first access,
so importing this module does nothing.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from celery import Celery, Task, bootsteps
from celery.exceptions import InvalidTaskError
from celery.signals import setup_logging
from redis import RedisError

from audiofuse.core.audio.recording import WINDOW_S, WINDOW_SAMPLES
from audiofuse.core.bundles.bundle import audio_fingerprint, load_encoder, load_version
from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.registry import Watch, open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import use_cpus
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.index.index import Generation, Index, open_index
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import open_store
from audiofuse.core.threads import end_process, vital_thread
from audiofuse.workers.indexing.decoding.pool import Decoders
from audiofuse.workers.indexing.device.device import Device
from audiofuse.workers.indexing.device.fair_lock import FairLock
from audiofuse.workers.indexing.message_threads import Delivery, MessageThreads
from audiofuse.workers.indexing.retries import RetryPolicy, quarantine
from audiofuse.workers.indexing.stages import BatchedIndex, BoundedStore
from audiofuse.workers.indexing.sync import Limits, Syncer
from audiofuse.workers.indexing.versions import (
    Loaded,
    MultiVersionSyncer,
    VersionDeadLetters,
    Versions,
)
from audiofuse.workers.queue.broker import (
    Dispatcher,
    connect_redis,
    create_celery,
)
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.queue.deliveries import Deliveries
from audiofuse.workers.queue.earlier import adopt
from audiofuse.workers.queue.lanes import SYNC_TASK, Lanes
from audiofuse.workers.queue.transport import acknowledge
from audiofuse.workers.telemetry import metrics
from audiofuse.workers.telemetry.logs import configure_logging
from audiofuse.workers.telemetry.metrics import LOADED, Process, Stage, serve_metrics
from audiofuse.workers.telemetry.names import Lane
from audiofuse.workers.telemetry.tracing import happened, start_tracing

log = logging.getLogger(__name__)

MISCONFIGURED = 2  # exit code
POLL_S = 0.1
BESIDE_LIVE = 8  # backfill messages at work while live ones come; more if a batch holds more
DEAD_AFTER = 2  # part of a visibility timeout without a word after which a worker counts as dead
HOLDS_A_TIMEOUT = 6  # how often, in a visibility timeout, the broker is told what is in hand


class SyncTask(Task):  # type: ignore[misc]
    """A message names a key. It never runs as a task: the worker's crew takes it."""

    name = SYNC_TASK
    worker: "Worker"

    def run(self, key: str) -> None:
        """Refuse: only the crew can sync."""
        raise NotImplementedError(key)

    def start_strategy(self, app: Celery, consumer: Any, **_: Any) -> Callable[..., None]:
        """Return what Celery calls for each message that it takes, in its own thread."""
        del app, consumer

        def take(message: Any, *_: object) -> None:
            self.worker.take(_held(message))

        return take


class Worker:
    """What a worker process consists of."""

    def __init__(self, settings: Settings, app: Celery, hub: Any) -> None:
        """Load, measure and start everything; no message is taken yet."""
        self._hub = hub
        self._grace_s = settings.grace_s
        self._redis = connect_redis(settings)
        self._lanes = Lanes(self._redis, settings.index_name)
        self._stopping = threading.Event()
        self._reported = threading.Event()  # that something has finished
        use_cpus(spare=1)  # for decoders and threads
        self._settings = settings
        self._index = open_index(settings)
        self._turn = FairLock()  # of the encoders on this device
        watch = Watch(open_registry(settings))
        encoder, version = self._live(watch.look())
        self._store = BoundedStore(open_store(settings), settings.fetch_bytes)
        self._deliveries = Deliveries(
            self._redis, self._store.bucket, settings.redelivery_s / DEAD_AFTER
        )
        self._decoders = Decoders(settings.decoders, settings.decode_timeout_s, tell=_decoded)
        first = self._equip(version, encoder, settings.batch_s)
        log.info(
            "batches of %.0f s of audio on %s, %d decoders, %d messages in hand",
            first.device.batch_s, first.device.encoder.device, settings.decoders, settings.in_hand,
        )  # fmt: skip
        self._versions = Versions(watch, self._load, first)
        self._batch_s = first.device.batch_s
        self._versions.look()
        dispatcher = Dispatcher(app)
        fates = RetryPolicy(self._every_syncer(dispatcher), dispatcher, self._stopping)
        beside_live = max(BESIDE_LIVE, int(self._batch_s / WINDOW_S))
        self._crew = MessageThreads(settings.in_hand, fates.settle, self._report, beside_live)
        self._hold_s = settings.redelivery_s / HOLDS_A_TIMEOUT
        vital_thread("hold", self._hold)
        vital_thread("follow", self._versions.follow)
        vital_thread("load", self._versions.keep_loaded)
        self._tell(first.device)
        serve_metrics(settings, Process.WORKER)
        start_tracing(settings, Process.WORKER)

    def _tell(self, device: Device) -> None:
        """Tell what is asked for at each scrape, and that the hub goes round."""
        LOADED[Process.WORKER].versions = lambda: [
            each.generation.version for each in self._versions.loaded
        ]
        for lane in Lane:
            metrics.IN_HAND.labels(lane).set_function(partial(self._in_hand, lane))
        _tell_device(device.encoder.device, self._settings.device)
        metrics.BATCH_CAPACITY.set(device.batch_s)
        metrics.HEARTBEAT.set_to_current_time()
        # In each turn of its loop, which ends while Celery connects anew, as do timers.
        self._hub.on_tick.add(metrics.HEARTBEAT.set_to_current_time)

    def _in_hand(self, lane: Lane) -> int:
        return sum(held.lane is lane for held in self._crew.held)

    def _live(self, rollout: Rollout | None) -> tuple[Encoder, str]:
        """Load the live version; without a rollout that is AUDIOFUSE_ENCODER."""
        if rollout is None:
            encoder, version = load_encoder(self._settings)
            live_generation(self._index, version, encoder)
        else:
            version = rollout.live
            encoder = load_version(self._settings, version)
            self._index.create(version, encoder)
        return encoder, version

    def _load(self, version: str) -> Loaded:
        """Load another version, and have it hear and read once before anybody waits for it."""
        encoder = load_version(self._settings, version)
        with self._turn:
            encoder.fuse(encoder.encode_audio([np.zeros(WINDOW_SAMPLES, np.float32)]), ["warm up"])
        return self._equip(version, encoder, self._batch_s)

    def _equip(self, version: str, encoder: Encoder, batch_s: float | None) -> Loaded:
        """Give an encoder what it needs to sync; measures the batches if they are not given."""
        settings, generation, same = (
            self._settings,
            self._index.generation(version),
            audio_fingerprint(encoder),
        )
        device = Device(encoder, batch_s, lambda: self._may_ask(device), self._turn)
        points = BatchedIndex(self._index, generation)
        letters = VersionDeadLetters(
            DeadLetters(self._redis, self._store.bucket, version),
            version,
            lambda: self._versions.wanted[0] == version,
        )
        syncers = {
            lane: Syncer(
                self._store, points, generation, device.on(lane),
                Limits(settings.max_duration_s, settings.max_object_bytes),
                partial(self._decoders.open, urgent=lane is Lane.LIVE),
                quarantine(self._deliveries), letters, self._stopping.wait,
                lambda id_: self._versions.heard_elsewhere(version, same, id_),
            )
            for lane in Lane
        }  # fmt: skip
        return Loaded(generation, same, device, points, syncers)

    def _every_syncer(self, dispatcher: Dispatcher) -> dict[Lane, MultiVersionSyncer]:
        letters = DeadLetters(self._redis, self._store.bucket)
        return {
            lane: MultiVersionSyncer(
                self._versions, lane, self._store, letters, dispatcher, self._stopping.wait
            )
            for lane in Lane
        }

    def _may_ask(self, device: Device) -> int:
        """Return how many threads may ask a device: those that do not wait for another."""
        others = (each.device for each in self._versions.loaded if each.device is not device)
        return self._crew.at_work() - sum(other.askers for other in others)

    def take(self, held: Delivery) -> None:
        """Take a message in hand; once the worker stops it goes back with the channel's end."""
        if not self._stopping.is_set():
            if held.receipt.delivery_info.get("redelivered"):
                metrics.REDELIVERIES.labels(held.lane).inc()
            self._crew.take(held)

    def stop(self) -> None:
        """Finish what is begun, within the grace period; the rest stays with the broker."""
        self._stopping.set()
        deadline = time.monotonic() + self._grace_s
        while self._crew.in_hand() and (left_s := deadline - time.monotonic()) > 0:
            self._acknowledge(min(left_s, POLL_S))
        self._acknowledge()
        log.info("stopped; %d messages go back", self._crew.in_hand())
        for each in self._versions.loaded:
            log.info("%s: %s", each.generation.version, each.device.stats)
            each.device.close()
        self._decoders.close()

    def _report(self) -> None:
        """Have Celery's thread acknowledge: no other may."""
        if not self._stopping.is_set() and not self._reported.is_set():
            self._reported.set()
            self._hub.call_soon(self._acknowledge)

    def _acknowledge(self, patience_s: float = 0.0) -> None:
        self._reported.clear()  # first: what finishes from here on is reported anew
        settled = [each.held for each in self._crew.finished(patience_s) if each.settled]
        try:
            acknowledge(held.receipt for held in settled)
        except Exception as error:  # noqa: BLE001 - the connection is one that was lost
            keys = ", ".join(held.key for held in settled)
            log.warning("done, but perhaps delivered again: %s; %r", keys, error)

    def _hold(self) -> None:
        """Keep what is in hand from being delivered again, unless nothing moves any more."""
        while not self._stopping.wait(self._hold_s):
            if any(each.device.stuck for each in self._versions.loaded):
                log.critical("the device does not answer")
                end_process()
            try:
                self._deliveries.stay_alive()
                adopt(self._redis, self._settings.index_name)
                self._lanes.keep_hold([each.receipt.delivery_tag for each in self._crew.held])
            except RedisError as error:
                log.warning("the broker does not answer: %s", error)


def _held(message: Any) -> Delivery:
    try:
        _, arguments, _ = message.payload
        lane = Lane(message.delivery_info["routing_key"])
        return Delivery(str(arguments["key"]), lane, message, message.headers)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidTaskError(f"a message must name a key, in a lane: {error!r}") from error


def _decoded(seconds: float, error: Exception | None) -> None:
    metrics.took(Stage.DECODE, seconds)
    happened("decode", seconds)
    if error:
        metrics.failed(Stage.DECODE, error)


def _tell_device(device: torch.device, asked: str) -> None:
    metrics.DEVICE_INFO.labels(device.type, asked).set(1)
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        metrics.DEVICE_MEMORY.labels("total").set(total)
        for memory, ask in (
            ("allocated", torch.cuda.memory_allocated),
            ("reserved", torch.cuda.memory_reserved),
        ):
            metrics.DEVICE_MEMORY.labels(memory).set_function(partial(ask, device))


def live_generation(index: Index, version: str, encoder: Encoder) -> Generation:
    """Return the generation to fill; ``ConfigurationError`` if another encoder's is live."""
    _refuse_another(index.live(), version)
    generation = index.create(version, encoder)
    _refuse_another(index.live(), version)  # of several encoders that begin at once one goes live
    return generation


def _refuse_another(live: Generation | None, version: str) -> None:
    if live and live.version != version:
        raise ConfigurationError(
            f"the live index was made by encoder {live.version}, AUDIOFUSE_ENCODER is {version}: "
            "what this worker indexed nobody would find"
        )


class RunWorker(bootsteps.StartStopStep):  # type: ignore[misc]
    """Starts the worker before Celery takes the first message, and ends it after the last."""

    requires = ("celery.worker.components:Pool",)

    def start(self, celery_worker: Any) -> None:
        """Start; an error of configuration ends the process with exit code 2."""
        task = celery_worker.app.tasks[SYNC_TASK]
        try:
            task.worker = Worker(Settings(), celery_worker.app, celery_worker.hub)
        except ConfigurationError as error:
            log.critical("the worker does not start: %s", error)
            raise SystemExit(MISCONFIGURED) from error

    def stop(self, celery_worker: Any) -> None:
        """Stop; Celery has stopped taking messages."""
        celery_worker.app.tasks[SYNC_TASK].worker.stop()


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
