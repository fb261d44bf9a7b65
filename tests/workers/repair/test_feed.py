"""Keys are handed over as the workers can take them, and followed to their end."""

from itertools import islice

import pytest
from pydantic import SecretStr
from redis import Redis

from audiofuse.core.settings import Settings
from audiofuse.workers.repair.feed import FOLLOWED_AT_ONCE, LaneFeed
from audiofuse.workers.telemetry.names import Lane


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again at once."""
    monkeypatch.setattr("audiofuse.workers.repair.feed.POLL_S", 0.01)


def test_the_queue_is_never_filled(redis: Redis, valkey_url: str) -> None:
    """No more than so many messages wait; whenever workers take some, others follow."""
    feed = LaneFeed(Settings(broker_url=SecretStr(valkey_url)), Lane.BACKFILL, ahead=10)
    steps = feed.queue(f"{number}.wav" for number in range(25))
    next(steps)
    assert (feed.queued, redis.llen("audiofuse:backfill")) == (10, 10)
    next(steps)
    assert feed.queued == 10
    redis.ltrim("audiofuse:backfill", 4, -1)
    next(steps)
    assert (feed.queued, redis.llen("audiofuse:backfill"), feed.done) == (14, 10, 4)
    for _ in steps:
        redis.delete("audiofuse:backfill")
    assert (feed.queued, feed.done) == (25, 25)


def test_keys_are_followed_until_they_are_settled(redis: Redis, valkey_url: str) -> None:
    """Whatever else goes round in the lane, following ends once the last key is settled."""
    feed = LaneFeed(Settings(broker_url=SecretStr(valkey_url)), Lane.BACKFILL)
    redis.lpush("audiofuse:backfill", "a message that never ends")
    left = [f"{number}.wav" for number in range(FOLLOWED_AT_ONCE + 2)]
    steps = feed.follow(list(left), lambda keys: [key for key in keys if key in left])
    next(steps)
    del left[:-1]
    next(steps)
    left.clear()
    assert list(steps) == []


def test_an_empty_lane_is_not_followed(redis: Redis, valkey_url: str) -> None:
    """Once nothing waits and nothing is worked on, the next comparison sees what is left."""
    feed = LaneFeed(Settings(broker_url=SecretStr(valkey_url)), Lane.BACKFILL)
    for lane in Lane:
        redis.zadd(f"audiofuse:held:{lane}", {"tag": 0})
    steps = feed.follow(["lost.wav"], list)
    assert list(islice(steps, 2)) == [None, None]
    redis.zrem("audiofuse:held:backfill", "tag")
    assert list(steps) == []
