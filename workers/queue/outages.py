"""What workers wait for, said in Redis: how ``audiofuse status`` knows of an outage.

    worker ── meets(error) ──> Redis ── current() ──> status
              works()

A worker says so while it meets errors that are not an object's own: something is away, or refuses
whatever it is asked. Each says it for itself: perhaps only its network, or its settings, are wrong.
"""

import json
import logging
import math
import threading
import time
from dataclasses import dataclass

from redis import Redis, RedisError

from audiofuse.workers.queue.lanes import key_prefix, server_time

log = logging.getLogger(__name__)

# Seconds after its last error for which an outage stands, as long as nothing has worked. It must
# exceed the longest pause between two tries, and what a try takes. Raised, one whose worker was
# killed is shown for longer.
STANDS_S = 90.0
SAY_EVERY_S = 1.0  # raised, status is behind by as much; lowered, many threads ask more of Redis


@dataclass(frozen=True)
class Outage:
    """What a worker waits for, in words that say what to do, and since which Unix time."""

    worker: str
    error: str
    since: float


class Outages:
    """The outages of all workers of one index. Raises what Redis does."""

    def __init__(self, redis: Redis, index_name: str) -> None:
        """Keep them in ``redis``, for the index of this name."""
        self._redis = redis
        # worker -> [until when, by Redis's clock; since when, a Unix time; what]
        self._name = f"{key_prefix(index_name)}outages"

    def stands(self, outage: Outage) -> None:
        """Note that a worker waits; that stands for a while."""
        entry = [server_time(self._redis) + STANDS_S, outage.since, outage.error]
        with self._redis.pipeline() as pipe:
            pipe.hset(self._name, outage.worker, json.dumps(entry))
            pipe.expire(self._name, math.ceil(STANDS_S))
            pipe.execute()

    def over(self, worker: str) -> None:
        """Note that a worker waits for nothing any more."""
        self._redis.hdel(self._name, worker)

    def current(self) -> list[Outage]:
        """Return the outages that stand, by their workers' names."""
        now = server_time(self._redis)
        entries: dict[str, str] = self._redis.hgetall(self._name)  # type: ignore[assignment]
        found = {worker: json.loads(entry) for worker, entry in sorted(entries.items())}
        return [
            Outage(worker, error, since)
            for worker, (until, since, error) in found.items()
            if until > now
        ]


class OutageReport:
    """What one worker waits for, which it says at most once a second. For many threads.

    That Redis cannot be told is no error of its own: the log has what is away.
    """

    def __init__(self, outages: Outages, worker: str) -> None:
        """Report to ``outages``, under the worker's name."""
        self._outages = outages
        self._worker = worker
        self._lock = threading.Lock()
        self.error = ""  # the last one met; empty: nothing is waited for
        self._since = 0.0  # a Unix time
        self._met_at = self._said_at = -math.inf  # monotonic times

    def meets(self, error: Exception) -> None:
        """Note an error that is not an object's own; the work is tried again."""
        now = time.monotonic()
        with self._lock:
            if not self.error or now - self._met_at > STANDS_S:
                self._since = time.time()
            self._met_at, self.error = now, str(error)
            if now - self._said_at < SAY_EVERY_S:
                return
            self._said_at = now
            outage = Outage(self._worker, self.error, self._since)
        try:
            self._outages.stands(outage)
        except RedisError as away:
            log.debug("status cannot be told what is waited for: %s", away)

    def works(self) -> None:
        """Note that something was done that needs everything."""
        if not self.error:
            return  # almost always; a lock for each message would be dear
        with self._lock:
            self.error, self._said_at = "", -math.inf
        try:
            self._outages.over(self._worker)
        except RedisError as away:
            log.debug("status cannot be told that it is over: %s", away)
