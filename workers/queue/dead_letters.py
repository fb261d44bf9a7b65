"""Dead letters: what keeps a bad object from being lost, or tried for ever."""

import heapq
import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from redis import Redis

from audiofuse.core.errors import Reason, Rejected
from audiofuse.workers.queue.lanes import key_prefix
from audiofuse.workers.queue.pipelined import Pipelined
from audiofuse.workers.telemetry.metrics import REJECTIONS

DEAD = "dead-letters"  # what their keys in Redis begin with, after the index's name
PAGE = 500  # letters that are asked for at once


@dataclass(frozen=True)
class DeadLetter:
    """Why the object ``key``, in its state ``etag``, is not in the index.

    ``encoder`` is the version that judged it, ``at`` the Unix time of the last verdict, ``count``
    how many there were.
    """

    key: str
    reason: Reason
    detail: str
    etag: str
    encoder: str
    at: float
    count: int


class DeadLetters:
    """At most one letter for each key of a bucket, newest verdict wins; held in Redis."""

    def __init__(self, redis: Redis, index_name: str, encoder: str = "") -> None:
        """Keep the letters of an index's bucket; ``encoder`` is whose verdicts are added."""
        self._redis = redis
        self._ask = Pipelined.of(redis)
        self._encoder = encoder
        name = key_prefix(index_name) + DEAD
        self._letters, self._counts = f"{name}:letters", f"{name}:counts"
        self._times = {reason: f"{name}:{reason}" for reason in Reason}

    def add(self, key: str, verdict: Rejected) -> None:
        """Record the verdict on an object."""
        at = time.time()
        letter = {
            "reason": verdict.reason,
            "detail": verdict.detail,
            "etag": verdict.etag,
            "encoder": self._encoder,
            "at": at,
        }
        with self._redis.pipeline() as pipe:
            pipe.hset(self._letters, key, json.dumps(letter))
            pipe.hincrby(self._counts, key)
            for times in self._times.values():
                pipe.zrem(times, key)
            pipe.zadd(self._times[verdict.reason], {key: at})
            pipe.execute()
        REJECTIONS.labels(verdict.reason).inc()

    def clear(self, keys: Iterable[str]) -> None:
        """Forget the verdicts on objects that are well, or gone."""
        names = list(keys)
        if not names:
            return
        with self._redis.pipeline() as pipe:
            pipe.hdel(self._letters, *names)
            pipe.hdel(self._counts, *names)
            for times in self._times.values():
                pipe.zrem(times, *names)
            pipe.execute()

    def count(self) -> int:
        """Return how many objects are dead-lettered."""
        return int(self._redis.hlen(self._letters))

    def reasons(self) -> dict[Reason, int]:
        """Return how many objects are dead-lettered for each reason that there is."""
        with self._redis.pipeline() as pipe:
            for times in self._times.values():
                pipe.zcard(times)
            counts = zip(self._times, pipe.execute(), strict=True)
        return {reason: count for reason, count in counts if count}

    def latest(self, limit: int) -> list[DeadLetter]:
        """Return the newest letters first."""
        return list(self.get(islice(self.keys(), max(limit, 0))).values())

    def keys(
        self, reason: Reason | None = None, prefix: str = "", before: float = math.inf
    ) -> Iterator[str]:
        """Walk over the keys of letters, newest first, a page at a time.

        Only those of a ``reason``, with a ``prefix``, judged before a Unix time. Letters that come
        and go on the way do no harm: the others are met once.
        """
        chosen = [reason] if reason else list(self._times)
        walks = (self._walk(self._times[each], before) for each in chosen)
        newest_first = heapq.merge(*walks, key=lambda entry: -entry[1])
        return (key for key, _ in newest_first if key.startswith(prefix))

    def _walk(self, times: str, before: float) -> Iterator[tuple[str, float]]:
        """Page by time, not by rank: ranks move when letters go."""
        met: set[str] = set()  # those of the time that the last page ended at
        while True:
            page: list[tuple[str, float]] = self._redis.zrevrangebyscore(  # type: ignore[assignment]
                times, before, "-inf", start=0, num=PAGE + len(met), withscores=True
            )
            fresh = [entry for entry in page if entry[0] not in met]
            yield from fresh
            if not fresh:
                return
            before = page[-1][1]
            met = {key for key, at in page if at == before}

    def get(self, keys: Iterable[str]) -> dict[str, DeadLetter]:
        """Return the letters that exist among ``keys``, by key."""
        names = list(keys)
        if not names or not any(self._ask("HMGET", self._letters, *names)):  # as nearly always
            return {}
        with self._redis.pipeline() as pipe:
            pipe.hmget(self._letters, names)
            pipe.hmget(self._counts, names)
            entries = zip(names, *pipe.execute(), strict=True)
        return {key: _read(key, letter, count) for key, letter, count in entries if letter}


def _read(key: str, letter: str, count: str) -> DeadLetter:
    values = json.loads(letter)
    return DeadLetter(key, **values | {"reason": Reason(values["reason"]), "count": int(count)})
