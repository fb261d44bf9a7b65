"""Which workers died while they decoded a sound, so that one that kills them is not tried for ever.

Redis brokers do not count deliveries. So each decoding leaves a tag of its own under the object's
key before it begins, and takes it away when it ends, however that is. What is left of a worker that
is not there any more is a death. Many may decode one object at once: their tags say nothing against
it, and the end of one takes nobody else's tag away.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import uuid4

from redis import Redis

from audiofuse.workers.queue.lanes import key_prefix
from audiofuse.workers.queue.pipelined import Pipelined

TAGS_TTL_S = 24 * 3600
"""Seconds for which a death is held against an object. Higher: deaths that had another cause, days
apart, add up; lower: a sound that kills a worker now and then is tried again sooner. It must
outlive every redelivery."""
BEGIN = """
redis.call('SET', KEYS[1], 1, 'PX', ARGV[1])
redis.call('SADD', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return redis.call('SMEMBERS', KEYS[2])
"""
"""Says that the worker is alive, leaves a tag, and returns all that the object has: at one moment,
so that no tag is ever left that does not expire."""


@dataclass(frozen=True)
class Delivery:
    """A decoding that has begun: its tag, and how many before it died with their workers."""

    tag: str
    deaths: int


class Deliveries:
    """The decodings of one worker.

    All methods raise ``RedisError`` while Redis is away.
    """

    def __init__(self, redis: Redis, index_name: str, alive_s: float) -> None:
        """Keep tags for the objects of an index's bucket.

        A worker of which nothing was heard for ``alive_s`` seconds, less than a redelivery takes,
        is dead.
        """
        self._redis = redis
        self._ask = Pipelined.of(redis)
        prefix = key_prefix(index_name)
        self._tags, self._alive = f"{prefix}deliveries:", f"{prefix}alive:"
        self._worker = uuid4().hex
        self._alive_ms = int(1000 * alive_s)

    def begin(self, key: str) -> Delivery:
        """Leave a tag, before any work on ``key``, and count the deaths so far."""
        tag = f"{self._worker}:{uuid4().hex}"
        alive, own = self._alive + self._worker, self._tags + key
        tags = self._ask("EVAL", BEGIN, 2, alive, own, self._alive_ms, tag, TAGS_TTL_S)
        return Delivery(tag, self._deaths(tags))

    def finish(self, key: str, tag: str) -> None:
        """Take the tag away: the work ended, or never really began."""
        self._ask("SREM", self._tags + key, tag)

    def forget(self, key: str) -> None:
        """Forget all deaths: there was a verdict, and whoever asks again gives a new chance."""
        self._redis.delete(self._tags + key)

    def stay_alive(self) -> None:
        """Say that this worker is there; ``begin`` says it, too."""
        self._redis.set(self._alive + self._worker, 1, px=self._alive_ms)

    def _deaths(self, tags: Iterable[str]) -> int:
        """Count the tags of workers that are not there any more."""
        counts = Counter(tag.partition(":")[0] for tag in tags)
        del counts[self._worker]
        if not counts:
            return 0
        with self._redis.pipeline() as pipe:
            for worker in counts:
                pipe.exists(self._alive + worker)
            alive = pipe.execute()
        return sum(
            count for count, is_alive in zip(counts.values(), alive, strict=True) if not is_alive
        )
