"""Builds from the settings what light processes run: intakes and the comparison behind them."""

from collections.abc import Iterable

from core.errors import ConfigurationError
from core.index import open_index
from core.settings import Settings
from core.store import FolderStore, Store, open_store, s3_client
from workers.broker import Dispatcher, connect_redis, create_celery
from workers.dead_letters import DeadLetters
from workers.events import Source
from workers.intake import FolderIntake, Reconcile, SqsIntake
from workers.reconcile import differences


def build_intake(settings: Settings, source: Source) -> FolderIntake | SqsIntake:
    """Build the intake of a source; ``ConfigurationError`` when the settings do not suit it."""
    store = open_store(settings)
    dispatcher = Dispatcher(create_celery(settings))
    if source is Source.SQS:
        if not settings.sqs_queue_url:
            raise ConfigurationError("AUDIOFUSE_SQS_QUEUE_URL is not set")
        client = s3_client(settings, "sqs")
        return SqsIntake(client, settings.sqs_queue_url, store.bucket, dispatcher)
    if not isinstance(store, FolderStore):
        raise ConfigurationError(f"AUDIOFUSE_BUCKET is no folder: {settings.bucket}")
    return FolderIntake(store, dispatcher, build_reconcile(settings, store))


def build_reconcile(settings: Settings, store: Store) -> Reconcile:
    """Build the comparison of bucket and live index, as a function of a key prefix."""
    index = open_index(settings)
    dead_letters = DeadLetters(connect_redis(settings))

    def reconcile(prefix: str) -> Iterable[str]:
        return differences(store, index, index.live(), dead_letters, prefix)

    return reconcile
