"""How a worker is put together: each part is made of parts that were made before it."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from celery import Celery
from redis import Redis

from audiofuse.core.audio.windows import WINDOW_S, OpenSound
from audiofuse.core.bundles.manifest import bundle_version
from audiofuse.core.bundles.registry import Watch, open_registry
from audiofuse.core.errors import ConfigurationError, Reason, Unavailable
from audiofuse.core.index.index import Generation, Index, open_index
from audiofuse.core.index.provisioning import VectorSizes
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.windows import grid_in_force
from audiofuse.core.retrying import BackOff, retry
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.core.storage.store import Store, open_store
from audiofuse.workers.indexing.breaker import Seats
from audiofuse.workers.indexing.decoding.pool import Decoders
from audiofuse.workers.indexing.exchange.client import DeviceClient
from audiofuse.workers.indexing.exchange.protocol import EncoderFacts
from audiofuse.workers.indexing.exchange.slab import Slab
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.indexing.retries import RetryPolicy, counted, take_back
from audiofuse.workers.indexing.stages import BatchedIndex, BoundedStore
from audiofuse.workers.indexing.versions import (
    Drain,
    Loaded,
    MultiVersionSyncer,
    VersionDeadLetters,
    Versions,
)
from audiofuse.workers.indexing.watchdog import Watchdog, message_bound_s
from audiofuse.workers.indexing.worker import Worker
from audiofuse.workers.queue.broker import Dispatcher, connect_redis
from audiofuse.workers.queue.consumer import Consumer
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.queue.deliveries import Deliveries
from audiofuse.workers.queue.followers import Follower, Followers, follower_name, joined
from audiofuse.workers.queue.outages import OutageReport, Outages
from audiofuse.workers.queue.waiting import WaitingKeys
from audiofuse.workers.telemetry import metrics
from audiofuse.workers.telemetry.metrics import Stage
from audiofuse.workers.telemetry.names import Lane
from audiofuse.workers.telemetry.tracing import happened

log = logging.getLogger(__name__)

T = TypeVar("T")

# Backfill messages at work while live ones come; more if a batch holds more. Raised, a backfill is
# faster; lowered, live messages wait less.
BESIDE_LIVE = 8
# Messages in hand for each slot of a window. Lowered, more memory may be taken while the device is
# behind; raised, decoders may wait for slots while it still could work.
IN_HAND_EACH_SLOT = 2
LOADING_S = 0.05  # between two looks whether the encoder is loaded; raised, a worker starts later
# Part of a visibility timeout without a word after which a worker counts as dead: raised, one that
# stands still for a moment is taken for dead; lowered, a death is known later.
DEAD_AFTER = 2
STARTING = BackOff(first_s=1, most_s=32)  # while what a worker needs to begin is away


@dataclass(frozen=True)
class Surroundings:
    """What a worker process has once, whatever versions it loads.

    ``working`` counts the messages that are worked on.
    """

    settings: Settings
    redis: Redis
    index: Index
    store: BoundedStore
    decoders: Decoders
    device: DeviceClient
    follower: Follower
    deliveries: Deliveries
    watchdog: Watchdog
    working: Counter[Lane]
    stopping: threading.Event = field(default_factory=threading.Event)


def build_worker(
    settings: Settings, celery: Celery, consumer: Consumer, pause: Callable[[float], object]
) -> Worker:
    """Load, measure and start everything but the threads; no message is taken yet.

    While what it needs to begin is away it waits, by ``pause``, which may raise what ends that.
    Raises ``ConfigurationError`` if the worker cannot do what it is set up for.
    """
    redis, index, watch = (
        connect_redis(settings),
        open_index(settings),
        Watch(open_registry(settings)),
    )
    report = OutageReport(Outages(redis, settings.index_name), follower_name("worker"))
    wait_for = partial(_wait_for, report, pause)
    version = wait_for(partial(_live_version, settings, watch))
    dispatcher = Dispatcher(celery)
    around = _surroundings(settings, redis, index, watch, dispatcher)
    facts = wait_for(partial(_loaded, around.device, version, pause))
    wait_for(partial(_begin, settings, index, version, facts, is_first=watch.tag is None))
    report.works()
    versions = Versions(around.follower, version)
    equipment = Equipment(around, versions)
    versions.put(equipment.equip(version, facts))
    versions.look()
    log.info(
        "batches of %.0f s of audio on %s, %d decoders, %d messages in hand",
        facts.batch_s, facts.runs_on, settings.decoders, settings.in_hand,
    )  # fmt: skip
    waiting = WaitingKeys(around.redis, settings.index_name)
    bound_s = message_bound_s(settings.max_duration_s)
    policy = RetryPolicy(
        _multi_version_syncers(around, versions, waiting),
        dispatcher,
        around.stopping,
        lambda key: around.watchdog.step(f"work on {key}", bound_s),
        report,
        _seats(around.store, settings),
    )
    return Worker(
        settings=settings,
        consumer=consumer,
        redis=around.redis,
        stopping=around.stopping,
        working=around.working,
        versions=versions,
        decoders=around.decoders,
        device=around.device,
        follower=around.follower,
        deliveries=around.deliveries,
        settle=policy.settle,
        beside_live=max(BESIDE_LIVE, int(facts.batch_s / WINDOW_S)),
        beside={
            "follow": versions.follow,
            "load": partial(versions.keep_loaded, equipment.load),
            "drain": Drain(versions, waiting, dispatcher).run,
            "watchdog": around.watchdog.run,
        },
    )


def _wait_for(report: OutageReport, pause: Callable[[float], object], work: Callable[[], T]) -> T:
    """Return what ``work`` returns, once what it needs is there."""
    return retry(work, (Unavailable,), STARTING, partial(_tell_waiting, report), pause)


def _tell_waiting(report: OutageReport, error: Exception, _: float) -> None:
    """Log what the worker waits for, once for each error; ``status`` shows it as long as it is."""
    if report.error != str(error):
        log.warning("the worker waits, and starts once this is mended: %s", error)
    report.meets(error)


def _seats(store: Store, settings: Settings) -> Seats:
    """Return how many messages may wait for one bucket: half of all, in equal parts."""
    buckets = len(store.parts())
    if buckets == 1:
        return Seats()
    return Seats(lambda key: store.place(key)[0], max(1, settings.in_hand // (2 * buckets)))


def _surroundings(
    settings: Settings, redis: Redis, index: Index, watch: Watch, dispatcher: Dispatcher
) -> Surroundings:
    if settings.device_socket is None:
        raise ConfigurationError(
            "this process takes messages only, and was told of no device process: start workers by "
            f"`audiofuse worker`, or say with {PREFIX}DEVICE_SOCKET where one listens"
        )
    watchdog, bucket = Watchdog(), open_store(settings)
    slab, working = Slab(max(1, settings.in_hand // IN_HAND_EACH_SLOT)), Counter[Lane]()
    letters = DeadLetters(redis, settings.index_name)
    give_back = partial(take_back, letters, dispatcher, Reason.UNREADABLE)
    store = BoundedStore(bucket, settings.fetch_bytes, watchdog, give_back)
    device = DeviceClient(settings.device_socket, slab, working.total)
    return Surroundings(
        settings=settings,
        redis=redis,
        index=index,
        store=store,
        decoders=Decoders(settings.decoders, settings.decode_timeout_s, slab, tell=_decoded),
        device=device,
        follower=Follower(
            watch,
            Followers(redis, settings.index_name),
            follower_name("worker"),
            lambda: joined(device.runs_on()),
        ),
        deliveries=Deliveries(redis, settings.index_name, settings.redelivery_s / DEAD_AFTER),
        watchdog=watchdog,
        working=working,
    )


class Equipment:
    """Gives an encoder what it needs to sync."""

    def __init__(self, around: Surroundings, versions: Versions) -> None:
        """Equip what becomes one of the ``versions``."""
        self._around = around
        self._versions = versions

    def load(self, version: str) -> Loaded:
        """Have the device load another version, and wait for it."""
        return self.equip(version, self._around.device.use(version).result())

    def equip(self, version: str, facts: EncoderFacts) -> Loaded:
        """Return what syncs by an encoder that the device has loaded."""
        around = self._around
        generation, fingerprint = around.index.generation(version), facts.audio_fingerprint
        points = BatchedIndex(around.index, generation, around.watchdog)
        letters = VersionDeadLetters(
            DeadLetters(around.redis, around.settings.index_name, version),
            version,
            lambda: self._versions.wanted[0] == version,
        )
        elsewhere = partial(self._versions.stored_elsewhere, version, fingerprint)
        grid = grid_in_force(around.settings, facts.grid)
        side = IndexSide(points, generation, letters, elsewhere, grid)
        syncers = {
            lane: Syncer(
                self._bucket_side(lane),
                replace(side, thorough=lane is Lane.BACKFILL),
                around.device.on(version, facts, lane),
            )
            for lane in Lane
        }
        return Loaded(
            generation,
            fingerprint,
            points,
            syncers,
            make=partial(around.index.create, version, facts, grid),
            let_go=partial(around.device.drop, version),
        )

    def _bucket_side(self, lane: Lane) -> BucketSide:
        around, settings = self._around, self._around.settings

        def open_sound(
            key: str, path: Path, max_duration_s: float
        ) -> AbstractContextManager[OpenSound]:
            count = partial(counted, around.deliveries, key)
            urgent = lane is Lane.LIVE
            return around.decoders.open(path, max_duration_s, urgent=urgent, around=count)

        limits = Limits(settings.max_duration_s, settings.max_object_bytes)
        return BucketSide(around.store, limits, open_sound, around.stopping.wait)


def _multi_version_syncers(
    around: Surroundings, versions: Versions, waiting: WaitingKeys
) -> dict[Lane, MultiVersionSyncer]:
    letters = DeadLetters(around.redis, around.settings.index_name)
    return {
        lane: MultiVersionSyncer(versions, lane, around.store, letters, waiting) for lane in Lane
    }


def _live_version(settings: Settings, watch: Watch) -> str:
    """Return the live version; without a rollout that is AUDIOFUSE_ENCODER."""
    rollout = watch.look()
    if rollout is not None:
        return rollout.live
    if settings.encoder is None:
        raise ConfigurationError(f"no encoder is set: give {PREFIX}ENCODER a bundle's folder")
    return bundle_version(settings.encoder)


def _loaded(device: DeviceClient, version: str, pause: Callable[[float], object]) -> EncoderFacts:
    """Return what an encoder is, once the device has loaded it; ``pause`` may end the waiting."""
    asked = device.use(version)
    while not asked.done():
        pause(LOADING_S)
    return asked.result()


def _begin(
    settings: Settings, index: Index, version: str, facts: EncoderFacts, *, is_first: bool
) -> None:
    """Make the live version's collections; ``is_first`` if no rollout says which that is."""
    grid = grid_in_force(settings, facts.grid)
    if is_first:
        live_generation(index, version, facts, grid)
    else:
        index.create(version, facts, grid)


def live_generation(
    index: Index, version: str, sizes: VectorSizes, grid: Grid | None
) -> Generation:
    """Return the generation to fill; ``ConfigurationError`` if another encoder's is live."""
    _refuse_another(index.live(), version)
    generation = index.create(version, sizes, grid)
    _refuse_another(index.live(), version)  # of several encoders that begin at once one goes live
    return generation


def _refuse_another(live: Generation | None, version: str) -> None:
    if live and live.version != version:
        raise ConfigurationError(
            f"the live index was made by encoder {live.version}, AUDIOFUSE_ENCODER is {version}: "
            "what this worker indexed nobody would find"
        )


def _decoded(seconds: float, error: Exception | None) -> None:
    metrics.took(Stage.DECODE, seconds)
    happened("decode", seconds)
    if error:
        metrics.failed(Stage.DECODE, error)
