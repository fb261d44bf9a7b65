"""Builds from the settings what light processes run: intakes and the comparison behind them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from redis import Redis

from core.errors import ConfigurationError
from core.index import open_index
from core.settings import PREFIX, Settings
from core.store import FolderStore, Store, open_store, s3_client
from workers.broker import Dispatcher, connect_redis, create_celery, tls_options
from workers.dead_letters import DeadLetters
from workers.events import Source
from workers.intake import FolderIntake, Handover, Intake, Reconcile
from workers.metrics import known_source
from workers.reconcile import Comparison, LastRun, Track, compare, differences, unseen
from workers.redis_list import RedisListIntake
from workers.sqs import SqsIntake
from workers.webhook import WebhookIntake


def build_intake(settings: Settings, source: Source) -> Intake:
    """Build the intake of a source; ``ConfigurationError`` when the settings do not suit it."""
    store = open_store(settings)
    dispatcher = Dispatcher(create_celery(settings))
    known_source(source)
    if source is Source.FOLDER:
        if not isinstance(store, FolderStore):
            raise ConfigurationError(f"{PREFIX}BUCKET is no folder: {settings.bucket}")
        return FolderIntake(store, dispatcher, build_reconcile(settings, store))
    handover = Handover(store.bucket, dispatcher, source)
    match source:
        case Source.SQS:
            return _sqs(settings, handover)
        case Source.REDIS:
            return _redis_list(settings, handover)
        case Source.WEBHOOK:
            return _webhook(settings, handover)


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


def choose_source(settings: Settings, store: Store) -> Source:
    """Return the source that the settings speak of; without any SQS, which says what it misses."""
    if isinstance(store, FolderStore):
        return Source.FOLDER
    if settings.sqs_queue_url:
        return Source.SQS
    if settings.redis_events_key:
        return Source.REDIS
    return Source.WEBHOOK if settings.webhook_token else Source.SQS


def build_reconcile(settings: Settings, store: Store) -> Reconcile:
    """Build the comparison of bucket and live index, as a function of a key prefix."""
    index = open_index(settings)
    dead_letters = DeadLetters(connect_redis(settings), store.bucket)

    def reconcile(prefix: str) -> Iterable[str]:
        return differences(store, index, index.live(), dead_letters, prefix)

    return reconcile


@contextmanager
def open_comparison(
    settings: Settings, prefix: str = "", track: Track = unseen, *, record: bool = True
) -> Iterator[Comparison]:
    """Compare bucket and live index now; ``record`` what was found, if all was compared."""
    store, index, redis = open_store(settings), open_index(settings), connect_redis(settings)
    dead_letters = DeadLetters(redis, store.bucket)
    with compare(store, index, index.live(), dead_letters, prefix, track) as comparison:
        if record and not prefix:
            LastRun(redis, store.bucket).write(comparison.run)
        yield comparison
