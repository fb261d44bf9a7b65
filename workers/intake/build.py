"""Builds from the settings what light processes run: intakes and the comparison behind them."""

from redis import Redis

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.mounts import MountedStore, names_of, read_mounts
from audiofuse.core.storage.store import FolderStore, Store, open_store, shown_bucket
from audiofuse.workers.intake.folder import FolderIntake, FolderIntakes
from audiofuse.workers.intake.handover import Handover, Intake
from audiofuse.workers.intake.redis_list import RedisListIntake
from audiofuse.workers.intake.sqs import SqsIntake
from audiofuse.workers.intake.webhook import WebhookIntake
from audiofuse.workers.queue.broker import Dispatcher, create_celery, tls_options
from audiofuse.workers.repair.reconcile import open_reconciler
from audiofuse.workers.telemetry.metrics import known_source
from audiofuse.workers.telemetry.names import Source


def build_intake(settings: Settings, source: Source) -> Intake:
    """Build the intake of a source; ``ConfigurationError`` when the settings do not suit it."""
    store = open_store(settings)
    dispatcher = Dispatcher(create_celery(settings))
    known_source(source)
    if source is Source.FOLDER:
        return _folders(settings, store, dispatcher)
    mounts = read_mounts(settings)
    handover = Handover(store.bucket, dispatcher, source, names_of(mounts) if mounts else None)
    match source:
        case Source.SQS:
            return _sqs(settings, handover)
        case Source.REDIS:
            return _redis_list(settings, handover)
        case Source.WEBHOOK:
            return _webhook(settings, handover)


def _folders(settings: Settings, store: Store, dispatcher: Dispatcher) -> Intake:
    reconcile = open_reconciler(settings).differences
    if isinstance(store, FolderStore):
        return FolderIntake(store, dispatcher, reconcile)
    mounts = store.mounts.values() if isinstance(store, MountedStore) else ()
    intakes = [
        FolderIntake(each.store, dispatcher, reconcile, each.top)
        for each in mounts
        if isinstance(each.store, FolderStore)
    ]
    if not intakes:
        raise ConfigurationError(f"{PREFIX}BUCKET is no folder: {shown_bucket(settings)}")
    return FolderIntakes(intakes)


def _sqs(settings: Settings, handover: Handover) -> SqsIntake:
    if not settings.sqs_queue_url:
        raise ConfigurationError(f"{PREFIX}SQS_QUEUE_URL is not set")
    return SqsIntake(s3_client(settings, "sqs"), settings.sqs_queue_url, handover)


def _redis_list(settings: Settings, handover: Handover) -> RedisListIntake:
    if not settings.redis_events_key:
        raise ConfigurationError(f"{PREFIX}REDIS_EVENTS_KEY is not set")
    url = (settings.redis_events_url or settings.broker_url).get_secret_value()
    tls = tls_options(url, settings) or {}
    redis: Redis = Redis.from_url(url, socket_connect_timeout=5, socket_timeout=30, **tls)
    return RedisListIntake(redis, settings.redis_events_key, handover)


def _webhook(settings: Settings, handover: Handover) -> WebhookIntake:
    if settings.webhook_token is None:
        raise ConfigurationError(f"{PREFIX}WEBHOOK_TOKEN is not set: whoever has it may post")
    host, _, port = settings.webhook_listen.rpartition(":")
    token = settings.webhook_token.get_secret_value()
    return WebhookIntake(handover, token, host.strip("[]"), int(port))


def choose_sources(settings: Settings, store: Store) -> list[Source]:
    """Return the sources of events that the settings' buckets take, each once."""
    if not isinstance(store, MountedStore):
        return [choose_source(settings, store)]
    stores = [each.store for each in store.mounts.values() if each.store is not None]
    return list(dict.fromkeys(choose_source(settings, each) for each in stores))


def choose_source(settings: Settings, store: Store) -> Source:
    """Return the source that the settings speak of; without any SQS, which says what it misses."""
    if isinstance(store, FolderStore):
        return Source.FOLDER
    if settings.sqs_queue_url:
        return Source.SQS
    if settings.redis_events_key:
        return Source.REDIS
    return Source.WEBHOOK if settings.webhook_token else Source.SQS
