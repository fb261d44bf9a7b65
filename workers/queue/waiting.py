"""Keys that wait for an encoder version which does not have them yet: a set, not messages.

    a version is not loaded, or fails ── add(version, key) ──> Redis ── drain ──> backfill lane

While a version cannot be written every upload would leave a message that goes round; here each key
is kept once, so what waits is bounded by the bucket, however long that lasts.
"""

from uuid import uuid4

from redis import Redis

from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.queue.lanes import key_prefix
from audiofuse.workers.telemetry.names import Lane

# Seconds after which what waits is forgotten, when nobody has added to it since: the version is
# long gone. Lower: a version that could not be loaded for so long misses what only a comparison
# (`audiofuse reconcile`, a rollout's build) finds.
KEPT_S = 7 * 24 * 3600

# Removes the keys whose token is still the one that was handed over: one that was added again
# meanwhile stays. ARGV: key, token, key, token, ...
REMOVE_UNCHANGED = """
for number = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[number]) == ARGV[number + 1] then
    redis.call('HDEL', KEYS[1], ARGV[number])
  end
end
"""


class WaitingKeys:
    """The keys of one bucket that wait, by version. Raises what Redis does."""

    def __init__(self, redis: Redis, index_name: str) -> None:
        """Keep them in ``redis``, for the index of this name."""
        self._redis = redis
        self._prefix = key_prefix(index_name)
        self._versions = f"{self._prefix}waited-for"  # those that keys waited for, lately

    def add(self, version: str, key: str) -> None:
        """Note that a version does not have the item of a key as it is now."""
        name = self._name(version)
        with self._redis.pipeline() as pipe:
            pipe.hset(name, key, uuid4().hex)
            pipe.sadd(self._versions, version)
            for each in (name, self._versions):
                pipe.expire(each, KEPT_S)
            pipe.execute()

    def count(self, version: str) -> int:
        """Return how many keys wait for a version."""
        return int(self._redis.hlen(self._name(version)))

    def counts(self) -> dict[str, int]:
        """Return how many keys wait, for each version that any wait for."""
        versions: set[str] = self._redis.smembers(self._versions)  # type: ignore[assignment]
        counts = {version: self.count(version) for version in sorted(versions)}
        return {version: count for version, count in counts.items() if count}

    def drain(self, version: str, dispatcher: Dispatcher, at_most: int) -> int:
        """Hand up to so many keys over to the backfill lane; return how many that were.

        Each waits on until its message is with the broker. Raises ``Unavailable`` if the broker
        takes none.
        """
        name = self._name(version)
        found: list[str] = self._redis.hrandfield(name, at_most, withvalues=True) or []  # type: ignore[assignment]
        keys = found[::2]
        for key in keys:
            dispatcher.sync(key, Lane.BACKFILL)
        if found:
            self._redis.eval(REMOVE_UNCHANGED, 1, name, *found)
        return len(keys)

    def _name(self, version: str) -> str:
        return f"{self._prefix}waiting:{version}"
