"""The queue: how Celery is set up over Redis or Valkey, and how a key is handed over to it.

Light on purpose: intake and the command line reach the queue without reaching torch.
"""

import json
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError
from kombu.utils.scheduling import priority_cycle
from redis import Redis

from audiofuse.core.errors import Unavailable
from audiofuse.core.settings import Settings
from audiofuse.workers.telemetry.names import Lane
from audiofuse.workers.telemetry.tracing import carry

SYNC_TASK = "sync"
BACKFILL_TURN = (
    10  # every so many messages, or batches, backfill goes first, so that it never starves
)
RESTORE_INTERVAL_S = 4
SENT = "audiofuse-sent"  # header of a message
UNACKED, UNACKED_INDEX = "unacked", "unacked_index"  # where kombu keeps what workers hold


class LiveFirst(priority_cycle):  # type: ignore[misc]
    """The order in which kombu asks the lanes for the next message."""

    def __init__(self) -> None:
        """Begin with live."""
        super().__init__()
        self._turn = 0

    def consume(self, n: int) -> list[str]:
        """Return the names of all lanes, the one to be asked first in front."""
        self._turn = (self._turn + 1) % BACKFILL_TURN
        first = Lane.LIVE if self._turn else Lane.BACKFILL
        return sorted(super().consume(n), key=lambda name: name != first)


def create_celery(settings: Settings) -> Celery:
    """Return the Celery application, without tasks; nothing is connected yet."""
    url = settings.broker_url.get_secret_value()
    app = Celery("audiofuse", broker=url, set_as_current=False)
    app.conf.update(
        # Of itself kombu would take any certificate, and with a transport of ours no TLS at all.
        broker_use_ssl=tls_options(url, settings),
        # JSON only, both ways: no code comes out of a message.
        task_serializer="json",
        accept_content=["json"],
        # A message is gone only when its work is done, and nobody reads results.
        task_acks_late=True,
        task_ignore_result=True,
        task_queues=[Queue(lane.value) for lane in Lane],
        task_default_queue=Lane.LIVE.value,
        # One process owns the model, so the work runs in the worker's own process.
        worker_pool="solo",
        worker_concurrency=1,
        worker_prefetch_multiplier=settings.in_hand,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_transport="audiofuse.workers.queue.transport:Transport",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        visibility_timeout=settings.redelivery_s,
        broker_transport_options={
            "visibility_timeout": settings.redelivery_s,
            # kombu's defaults look for lost messages every 100 s only, and let a worker that is
            # killed while it looks keep all others from it for 5 minutes.
            "unacked_restore_interval": RESTORE_INTERVAL_S,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": RESTORE_INTERVAL_S,
            "queue_order_strategy": "audiofuse.workers.queue.broker:LiveFirst",
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
            "socket_keepalive": True,
            "health_check_interval": 25,
            "retry_on_timeout": True,
        },
    )
    return app


def tls_options(url: str, settings: Settings) -> dict[str, Any] | None:
    """Return how the server of a ``rediss://`` address is known; ``None`` for any other."""
    if not url.startswith("rediss://"):
        return None
    ca_file = str(settings.ca_file) if settings.ca_file else None
    return {
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
        "ssl_check_hostname": True,
        "ssl_ca_certs": ca_file,
    }


def connect_redis(settings: Settings) -> Redis:
    """Return a client for what lives beside the queue: dead letters and delivery counts."""
    url = settings.broker_url.get_secret_value()
    client: Redis = Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=5,
        socket_timeout=30,
        **(tls_options(url, settings) or {}),
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
            # When it was sent is a Unix time: how old a message is, nobody else says.
            headers = {SENT: time.time(), **carry()}
            self._app.send_task(SYNC_TASK, kwargs={"key": key}, queue=lane.value, headers=headers)
        except OperationalError as error:
            raise Unavailable(f"the broker does not take messages: {error}") from error


def queue_lengths(redis: Redis) -> dict[str, int]:
    """Return the messages that wait in each lane, and those handed out but not acknowledged."""
    with redis.pipeline() as pipe:  # at one moment: a message is always in just one place
        for lane in Lane:
            pipe.llen(lane.value)
        pipe.hlen(UNACKED)
        return dict(
            zip(
                [*(lane.value for lane in Lane), "unacknowledged"],
                map(int, pipe.execute()),
                strict=True,
            )
        )


@dataclass(frozen=True)
class Backlog:
    """A lane's messages: waiting, and with workers; and the age of the oldest of them, or 0."""

    ready: int
    unacknowledged: int
    oldest_s: float


def backlogs(redis: Redis) -> dict[Lane, Backlog]:
    """Return how much there is to do in each lane, at one moment."""
    with redis.pipeline() as pipe:
        for lane in Lane:
            pipe.llen(lane.value)
            pipe.lindex(lane.value, -1)  # the next to be taken
        pipe.hvals(UNACKED)
        *waiting, held = pipe.execute()
    messages = [json.loads(each) for each in held]
    now = time.time()
    found = {}
    for lane, ready, first in zip(Lane, waiting[::2], waiting[1::2], strict=True):
        unacknowledged = [message for message, _, queue in messages if queue == lane.value]
        known = [*unacknowledged, *([json.loads(first)] if first else [])]
        oldest = min((message["headers"].get(SENT, now) for message in known), default=now)
        found[lane] = Backlog(int(ready), len(unacknowledged), max(0.0, now - oldest))
    return found


def backlog(redis: Redis, lane: Lane) -> int:
    """Return how many messages of a lane wait or are worked on."""
    with redis.pipeline() as pipe:
        pipe.llen(lane.value)
        pipe.hvals(UNACKED)
        waiting, held = pipe.execute()
    return int(waiting) + [json.loads(each)[-1] for each in held].count(lane.value)


def keep_hold(redis: Redis, tags: Iterable[str]) -> None:
    """Say that these messages are still worked on, lest they be delivered again."""
    if held := dict.fromkeys(tags, time.time()):
        redis.zadd(UNACKED_INDEX, held, xx=True)
