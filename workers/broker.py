"""The queue: how Celery is set up over Redis or Valkey, and how a key is handed over to it.

Light on purpose: intake and the command line reach the queue without reaching torch.
"""

from enum import StrEnum

from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError
from redis import Redis

from core.errors import Unavailable
from core.settings import Settings

SYNC_TASK = "sync"
VISIBILITY_TIMEOUT_S = 600  # a killed worker's messages come back after this; tasks take less


class Lane(StrEnum):
    """The two queues; live messages always go first."""

    LIVE = "live"
    BACKFILL = "backfill"


def create_celery(settings: Settings) -> Celery:
    """Return the Celery application, without tasks; nothing is connected yet."""
    app = Celery("audiofuse", broker=settings.broker_url.get_secret_value(), set_as_current=False)
    app.conf.update(
        # JSON only, both ways: no code comes out of a message.
        task_serializer="json",
        accept_content=["json"],
        # A message is gone only when its work is done, and nobody reads results.
        task_acks_late=True,
        task_ignore_result=True,
        # Live before backfill: the transport asks the queues in this order.
        task_queues=[Queue(lane.value) for lane in Lane],
        task_default_queue=Lane.LIVE.value,
        # One process owns the model, so the work runs in the worker's own process.
        worker_pool="solo",
        worker_concurrency=1,
        worker_prefetch_multiplier=4,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        visibility_timeout=VISIBILITY_TIMEOUT_S,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            # kombu's defaults look for lost messages every 100 s only.
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
            "queue_order_strategy": "priority",
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "retry_on_timeout": True,
        },
    )
    return app


def connect_redis(settings: Settings) -> Redis:
    """Return a client for what lives beside the queue: dead letters and delivery counts."""
    client: Redis = Redis.from_url(
        settings.broker_url.get_secret_value(),
        decode_responses=True,
        socket_connect_timeout=5,
        socket_timeout=30,
    )
    return client


class Dispatcher:
    """Hands keys over to the workers."""

    def __init__(self, app: Celery) -> None:
        """Send through ``app``'s broker."""
        self._app = app

    def sync(self, key: str, lane: Lane) -> None:
        """Ask for the item of ``key`` to be synced; when this returns the broker has the message.

        Raises ``Unavailable`` when the broker takes none.
        """
        try:
            self._app.send_task(SYNC_TASK, kwargs={"key": key}, queue=lane.value)
        except OperationalError as error:
            raise Unavailable(f"the broker does not take messages: {error}") from error


def queue_lengths(redis: Redis) -> dict[str, int]:
    """Return the messages that wait in each lane, and those handed out but not acknowledged."""
    lengths = {lane.value: int(redis.llen(lane.value)) for lane in Lane}
    return lengths | {"unacknowledged": int(redis.hlen("unacked"))}
