"""Which workers died while they decoded a sound, so that one that kills them is not tried for ever.

Redis brokers do not count deliveries. So each decoding leaves a tag of its own under the object's
key before it begins, and takes it away when it ends, however that is. What is left of a worker that
is not there any more is a death. Many may decode one object at once: their tags say nothing against
it, and the end of one takes nobody else's tag away.
"""

from collections import Counter
from dataclasses import dataclass
from uuid import uuid4

from redis import Redis, RedisError

from audiofuse.core.batcher import Batcher
from audiofuse.workers.queue.lanes import key_prefix

AT_ONCE = 128
"""Tags that go to Redis together. Higher: fewer round trips when many begin at once."""
TAGS_TTL_S = 24 * 3600
"""Seconds for which a death is held against an object. Higher: deaths that had another cause, days
apart, add up; lower: a sound that kills a worker now and then is tried again sooner. It must
outlive every redelivery."""


@dataclass(frozen=True)
class Delivery:
    """A decoding that has begun: its tag, and how many before it died with their workers."""

    tag: str
    deaths: int


class Deliveries:
    """The decodings of one worker; what many threads say at the same time goes to Redis together.

    All methods raise ``RedisError`` while Redis is away.
    """

    def __init__(self, redis: Redis, index_name: str, alive_s: float) -> None:
        """Keep tags for the objects of an index's bucket.

        A worker of which nothing was heard for ``alive_s`` seconds, less than a redelivery takes,
        is dead.
        """
        self._redis = redis
        prefix = key_prefix(index_name)
        self._tags, self._alive = f"{prefix}deliveries:", f"{prefix}alive:"
        self._worker = uuid4().hex
        self._alive_ms = int(1000 * alive_s)
        self._say = Batcher[tuple[str, str, bool], set[str]](
            self._say_all, AT_ONCE, away=(RedisError,)
        )

    def begin(self, key: str) -> Delivery:
        """Leave a tag, before any work on ``key``, and count the deaths so far."""
        tag = f"{self._worker}:{uuid4().hex}"
        return Delivery(tag, self._deaths(self._say((key, tag, True))))

    def finish(self, key: str, tag: str) -> None:
        """Take the tag away: the work ended, or never really began."""
        self._say((key, tag, False))

    def forget(self, key: str) -> None:
        """Forget all deaths: there was a verdict, and whoever asks again gives a new chance."""
        self._redis.delete(self._tags + key)

    def stay_alive(self) -> None:
        """Say that this worker is there; ``begin`` says it, too."""
        self._redis.set(self._alive + self._worker, 1, px=self._alive_ms)

    def _deaths(self, tags: set[str]) -> int:
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

    def _say_all(self, said: list[tuple[str, str, bool]]) -> list[set[str]]:
        """Leave the tags of what begins, take away the others; return each key's tags."""
        with self._redis.pipeline() as pipe:
            pipe.set(self._alive + self._worker, 1, px=self._alive_ms)
            for key, tag, begins in said:
                (pipe.sadd if begins else pipe.srem)(self._tags + key, tag)
            for key, _, begins in said:
                if begins:
                    pipe.expire(self._tags + key, TAGS_TTL_S)
            for key, _, _ in said:
                pipe.smembers(self._tags + key)
            return pipe.execute()[-len(said) :]
