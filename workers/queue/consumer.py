"""How the worker takes messages: Celery's consumer, with what a thread's work needs besides.

What is in hand stays in hand when a connection is lost: it is worked on, counted against what may
be taken, kept from being delivered again, and acknowledged through the next connection. So no
message is worked on twice for that, and never more than ``AUDIOFUSE_IN_HAND`` at once.
"""

import logging
from collections.abc import Callable
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer

from audiofuse.workers.queue.transport import QoS
from audiofuse.workers.telemetry.names import Lane

log = logging.getLogger(__name__)


class Consumer(CeleryConsumer):  # type: ignore[misc]
    """Takes the lanes' messages, and acknowledges many in one go."""

    _held: QoS | None = None  # of the present connection, or of the last while there is none

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[..., None]:
        """Return what is called for each message; Celery asks for it once for each connection."""
        held: QoS = self.task_consumer.channel.qos
        held.gathers = True
        if self._held is not None:
            held.take_over(self._held, self.pool.messages)
        self._held = held
        handler: Callable[..., None] = super().create_task_handler(*args, **options)
        return handler

    def call_soon_ack(self, p: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Acknowledge, or hand back, at once: this is Celery's thread."""
        p(*args, **options)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Connect anew, and hand nothing back of what is worked on."""
        if self._held is not None:
            self._held.restore_at_shutdown = False
        super().on_connection_error_after_connected(exc)

    def reset_rate_limits(self) -> None:
        """Limit anew also what waits for the old limit, which Celery lets wait on."""
        waiting = [
            request
            for bucket in self.task_buckets.values()
            if bucket
            for request, _ in bucket.contents
        ]
        for bucket in self.task_buckets.values():
            if bucket:
                bucket.clear_pending()
        super().reset_rate_limits()
        for request in waiting:
            if bucket := self.task_buckets[request.name]:
                self._limit_task(request, bucket, 1)
            else:
                self._limit_move_to_pool(request)

    def add_task_queue(self, queue: str, *args: Any, **options: Any) -> None:
        """Refuse all but the lanes: whatever else there is holds no messages of ours."""
        if queue not in set(Lane):
            log.error("queue %s is refused: a worker takes %s", queue, " and ".join(Lane))
        else:
            super().add_task_queue(queue, *args, **options)

    def takes(self, lane: Lane) -> bool:
        """Return whether messages of a lane are taken: not if ``-Q`` or a command says so."""
        return lane in self.app.amqp.queues.consume_from

    def held(self) -> list[Any]:
        """Return the messages in hand, whoever has them; any thread may ask."""
        return self._held.held() if self._held else []

    def acknowledge(self) -> None:
        """Acknowledge in one go what is done."""
        if self._held:
            self._held.acknowledge()

    def tell(self) -> None:
        """Send the events of what is done, if anybody wants any."""
        if self.event_dispatcher:
            self.event_dispatcher.flush()
