"""The Redis list to which MinIO appends its events (its target's format ``access``)."""

import logging
import threading

from redis import Redis

from audiofuse.workers.intake.handover import Handover, persist
from audiofuse.workers.telemetry.names import Source

log = logging.getLogger(__name__)

WAIT_S = 2  # for a message; no longer, so that it stops soon
AT_ONCE = 100


class RedisListIntake:
    """Reads a Redis list, oldest first.

    A message moves to the list ``KEY:taken`` and leaves that once it is handed over, so that a
    crash loses none. Whoever starts moves back what lies there. That something is then handed over
    twice, when another intake still has it in hand, does no harm; so one list is enough for all.
    """

    def __init__(self, redis: Redis, key: str, handover: Handover) -> None:
        """Take messages from the list ``key``; ``redis`` must answer in bytes."""
        self._redis = redis
        self._key = key
        self._taken = f"{key}:taken"
        self._handover = handover

    def run(self, stop: threading.Event) -> None:
        """Read until ``stop`` is set; while Redis or the broker is away, try again."""
        log.info("reading the list %s", self._key)
        persist(self._read_until, stop, Source.REDIS)

    def _read_until(self, stop: threading.Event) -> None:
        self._put_back()
        while not stop.is_set():
            self.read()

    def _put_back(self) -> None:
        while self._redis.lmove(self._taken, self._key, "RIGHT", "LEFT") is not None:
            pass

    def read(self, wait_s: float = WAIT_S) -> int:
        """Hand over the next messages and only then let go of them; return how many there were.

        Raises ``Unavailable`` or ``RedisError``.
        """
        messages = self._take(wait_s)
        self._handover.hand_over(messages)
        with self._redis.pipeline(transaction=False) as pipeline:
            for message in messages:
                pipeline.lrem(self._taken, 1, message)  # type: ignore[arg-type]  # it takes bytes
            pipeline.execute()
        return len(messages)

    def _take(self, wait_s: float) -> list[bytes]:
        lists = self._key, self._taken
        first = self._redis.blmove(*lists, wait_s, "LEFT", "RIGHT")  # type: ignore[arg-type]
        if first is None:
            return []
        with self._redis.pipeline(transaction=False) as pipeline:
            for _ in range(AT_ONCE - 1):
                pipeline.lmove(self._key, self._taken, "LEFT", "RIGHT")
            return [message for message in (first, *pipeline.execute()) if message is not None]
