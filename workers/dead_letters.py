"""Dead letters and delivery counts: what keeps a bad object from being lost, or tried for ever."""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from redis import Redis

from core.errors import Reason, Rejected

LETTERS, TIMES = "audiofuse:dead:letters", "audiofuse:dead:times"
DELIVERIES = "audiofuse:deliveries:"
DELIVERIES_TTL_S = 24 * 3600  # a count outlives every redelivery, but not for ever


@dataclass(frozen=True)
class DeadLetter:
    """Why the object ``key``, in its state ``etag``, is not in the index. ``at`` is Unix time."""

    key: str
    reason: Reason
    detail: str
    etag: str
    at: float


class DeadLetters:
    """At most one letter for each key, newest verdict wins; held in Redis."""

    def __init__(self, redis: Redis) -> None:
        """Keep the letters in ``redis``."""
        self._redis = redis

    def add(self, key: str, verdict: Rejected) -> None:
        """Record the verdict on an object."""
        letter = DeadLetter(key, verdict.reason, verdict.detail, verdict.etag, time.time())
        with self._redis.pipeline() as pipe:
            pipe.hset(LETTERS, key, json.dumps(asdict(letter)))
            pipe.zadd(TIMES, {key: letter.at})
            pipe.execute()

    def clear(self, keys: Iterable[str]) -> None:
        """Forget the verdicts on objects that are well, or gone."""
        names = list(keys)
        if not names:
            return
        with self._redis.pipeline() as pipe:
            pipe.hdel(LETTERS, *names)
            pipe.zrem(TIMES, *names)
            pipe.execute()

    def count(self) -> int:
        """Return how many objects are dead-lettered."""
        return int(self._redis.hlen(LETTERS))

    def latest(self, limit: int) -> list[DeadLetter]:
        """Return the newest letters first."""
        if limit < 1:
            return []
        keys: list[str] = self._redis.zrevrange(TIMES, 0, limit - 1)  # type: ignore[assignment]
        return list(self.get(keys).values())

    def keys(self) -> Iterator[str]:
        """Walk over the keys of all letters."""
        yield from (key for key, _ in self._redis.hscan_iter(LETTERS))

    def get(self, keys: Iterable[str]) -> dict[str, DeadLetter]:
        """Return the letters that exist among ``keys``, by key."""
        names = list(keys)
        if not names:
            return {}
        found: list[str | None] = self._redis.hmget(LETTERS, names)  # type: ignore[assignment]
        return {key: _read(content) for key, content in zip(names, found, strict=True) if content}


def _read(content: str) -> DeadLetter:
    values = json.loads(content)
    return DeadLetter(**values | {"reason": Reason(values["reason"])})


class Deliveries:
    """Counts how often work on a key was begun and not finished.

    Redis brokers do not count deliveries, so a file that kills its worker would be tried for ever.
    """

    def __init__(self, redis: Redis) -> None:
        """Keep the counts in ``redis``."""
        self._redis = redis

    def begin(self, key: str) -> int:
        """Count one more delivery, before any work on it, and return how many there were."""
        with self._redis.pipeline() as pipe:
            pipe.incr(DELIVERIES + key)
            pipe.expire(DELIVERIES + key, DELIVERIES_TTL_S)
            return int(pipe.execute()[0])

    def finish(self, key: str) -> None:
        """Forget the count: the work ended, or never really began."""
        self._redis.delete(DELIVERIES + key)
