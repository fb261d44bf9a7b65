"""The queue: how Celery is set up over Redis or Valkey, and how a key is handed over to it.

Light on purpose: intake and the command line reach the queue without reaching torch.
"""

import logging
import ssl
import time
from typing import Any

from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import ReadOnlyError

from audiofuse.core.errors import Unavailable
from audiofuse.core.settings import Settings
from audiofuse.workers.queue.lanes import SENT, SYNC_TASK, Lanes, key_prefix
from audiofuse.workers.telemetry.names import Lane
from audiofuse.workers.telemetry.tracing import carry

RESTORE_INTERVAL_S = 4
"""Seconds between two looks for messages whose worker is gone. Higher: they come back later;
lower: more requests."""


class ToldOnce(logging.Filter):
    """Lets an error that Celery logs at each try to connect through once, until it logs another."""

    _last = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record says something new; its second line counts the tries."""
        before, self._last = self._last, record.getMessage().partition("\n")[0]
        return self._last != before


TOLD_ONCE = ToldOnce()


def create_celery(settings: Settings) -> Celery:
    """Return the Celery application, without tasks; nothing is connected yet."""
    url = settings.broker_url.get_secret_value()
    app = Celery("audiofuse", broker=url, set_as_current=False)
    logging.getLogger("celery.worker.consumer.consumer").addFilter(TOLD_ONCE)
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
        task_create_missing_queues=False,  # -Q with anything but a lane is a mistake
        # One process owns the model, so the work runs in the worker's own process; what is taken
        # is worked on at once.
        worker_pool="threads",
        worker_concurrency=settings.in_hand,
        worker_prefetch_multiplier=1,
        # What is in hand stays in hand, and is counted, when a connection is lost.
        worker_enable_prefetch_count_reduction=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_transport="audiofuse.workers.queue.transport:Transport",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_channel_error_retry=True,  # who refuses is waited for like who is away
        visibility_timeout=settings.redelivery_s,
        broker_transport_options={
            "global_keyprefix": key_prefix(settings.index_name),
            "visibility_timeout": settings.redelivery_s,
            # kombu's defaults look for lost messages every 100 s only, and let a worker that is
            # killed while it looks keep all others from it for 5 minutes.
            "unacked_restore_interval": RESTORE_INTERVAL_S,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": RESTORE_INTERVAL_S,
            "queue_order_strategy": "audiofuse.workers.queue.lanes:LiveFirst",
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
        # After a fail-over the address leads to another server, so the connection is made anew.
        retry_on_error=[ReadOnlyError],
        **(tls_options(url, settings) or {}),
    )
    return client


def open_lanes(settings: Settings) -> Lanes:
    """Return the lanes of the deployment that the settings name."""
    return Lanes(connect_redis(settings), settings.index_name)


class Dispatcher:
    """Hands keys over to the workers."""

    def __init__(self, app: Celery) -> None:
        """Send through ``app``'s broker."""
        self._app = app

    def sync(self, key: str, lane: Lane, sent: float | None = None) -> None:
        """Ask for the item of ``key`` to be synced; when this returns the broker has the message.

        ``sent`` is the Unix time at which it was first asked for, if it was before. Raises
        ``Unavailable`` when the broker takes none.
        """
        try:
            # When it was sent is a Unix time: how old a message is, nobody else says.
            headers = {SENT: sent or time.time(), **carry()}
            self._app.send_task(SYNC_TASK, kwargs={"key": key}, queue=lane.value, headers=headers)
        except OperationalError as error:
            raise Unavailable(f"the broker does not take messages: {error}") from error
