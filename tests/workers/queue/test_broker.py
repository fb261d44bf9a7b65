"""The broker: how a key is handed over, how much waits, and what an earlier release left."""

import json
import time
from typing import Any

import pytest
from redis import Redis

from audiofuse.core.errors import Unavailable
from audiofuse.core.settings import Settings
from audiofuse.workers.queue.broker import Dispatcher, connect_redis, create_celery
from audiofuse.workers.queue.earlier import adopt
from audiofuse.workers.queue.lanes import SENT, SYNC_TASK, Lanes, LiveFirst
from audiofuse.workers.telemetry.names import Lane


def test_messages_wait_in_their_lane(redis: Redis, dispatcher: Dispatcher) -> None:
    """A key handed over is one JSON message in the queue of its lane."""
    dispatcher.sync("owl.wav", Lane.LIVE)
    dispatcher.sync("other.wav", Lane.BACKFILL)
    dispatcher.sync("third.wav", Lane.BACKFILL)
    lanes = Lanes(redis, "audiofuse")
    assert lanes.lengths() == {"live": 1, "backfill": 2, "unacknowledged": 0}
    (message,) = redis.lrange("audiofuse:live", 0, -1)
    assert json.loads(message)["content-type"] == "application/json"


def test_two_deployments_share_a_redis_and_no_message(redis: Redis, valkey_url: str) -> None:
    """Every key of the queue begins with the index's name, so nobody meets another's messages."""
    for name in ("one", "two"):
        settings = Settings(broker_url=valkey_url, index_name=name)
        Dispatcher(create_celery(settings)).sync(f"{name}.wav", Lane.LIVE)
    assert {key.partition(":")[0] for key in redis.keys("*")} == {"one", "two"}
    assert [Lanes(redis, name).backlog(Lane.LIVE) for name in ("one", "two", "audiofuse")] == [
        1, 1, 0,
    ]  # fmt: skip


def test_a_message_with_a_priority_is_counted(redis: Redis, valkey_url: str) -> None:
    """Kombu keeps it in a list of its own, which belongs to the lane as well."""
    app = create_celery(Settings(broker_url=valkey_url))
    for priority in (None, 3, 9):
        app.send_task(SYNC_TASK, kwargs={"key": "owl.wav"}, queue="live", priority=priority)
    assert Lanes(redis, "audiofuse").waiting(Lane.LIVE) == 3


def test_the_oldest_message_is_found_wherever_it_is(redis: Redis, dispatcher: Dispatcher) -> None:
    """The age of a lane is that of its oldest message, also if a worker holds that."""
    lanes = Lanes(redis, "audiofuse")
    assert lanes.backlogs()[Lane.LIVE].oldest_s == 0
    dispatcher.sync("a.wav", Lane.LIVE)
    assert lanes.backlogs()[Lane.LIVE].oldest_s < 60
    redis.zadd("audiofuse:held:live", {"tag": time.time() - 500})
    live = lanes.backlogs()[Lane.LIVE]
    assert (live.ready, live.unacknowledged) == (1, 1)
    assert live.oldest_s == pytest.approx(500, abs=60)
    assert lanes.backlogs()[Lane.BACKFILL].oldest_s == 0


def test_a_foreign_message_has_no_age(redis: Redis) -> None:
    """What is none of ours at the head of a lane counts as a message, and tells no time."""
    for foreign in ("no JSON", "[]", '{"headers": null}', '{"headers": {"audiofuse-sent": "x"}}'):
        redis.lpush("audiofuse:live", foreign)
        live = Lanes(redis, "audiofuse").backlogs()[Lane.LIVE]
        assert (live.ready, live.oldest_s) == (1, 0)
        redis.delete("audiofuse:live")


def test_handing_over_fails_loudly(nobody: Dispatcher) -> None:
    """When the broker is away the caller learns it, so that it keeps the event."""
    with pytest.raises(Unavailable, match="broker"):
        nobody.sync("owl.wav", Lane.LIVE)


@pytest.mark.parametrize(
    ("refuse", "mend"),
    [
        (["replicaof", "127.0.0.1", "1"], ["replicaof", "no", "one"]),
        (["config", "set", "maxmemory", "1"], ["config", "set", "maxmemory", "0"]),
    ],
    ids=["READONLY", "OOM"],
)
def test_a_broker_that_refuses_is_unavailable(
    redis: Redis, dispatcher: Dispatcher, refuse: list[str], mend: list[str]
) -> None:
    """A refusal of the server is no bug of the sender's; once it is mended messages go again."""
    redis.execute_command(*refuse)
    try:
        with pytest.raises(Unavailable, match="broker"):
            dispatcher.sync("owl.wav", Lane.LIVE)
    finally:
        redis.execute_command(*mend)
    dispatcher.sync("owl.wav", Lane.LIVE)
    assert Lanes(redis, "audiofuse").lengths()["live"] == 1


def test_live_goes_first_and_backfill_never_starves() -> None:
    """Of ten times that the broker is asked, live is the first to be asked nine times."""
    cycle = LiveFirst()
    cycle.update(["backfill", "live"])
    first = [cycle.consume(2)[0] for _ in range(20)]
    assert first.count("live") == 18
    assert first.count("backfill") == 2
    assert sorted(cycle.consume(2)) == ["backfill", "live"]


def test_what_is_held_is_stamped_with_the_servers_clock(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose own clock is wrong keeps its hold all the same, and on nothing else."""
    lanes = Lanes(redis, "audiofuse")
    monkeypatch.setattr("time.time", lambda: 0.0)
    redis.zadd("audiofuse:unacked_index", {"held": 1})
    lanes.keep_hold(["held", "given up"])
    lanes.keep_hold([])
    seconds, _ = redis.time()
    ((tag, since),) = redis.zrange("audiofuse:unacked_index", 0, -1, withscores=True)
    assert tag == "held"
    assert since == pytest.approx(seconds, abs=30)


def _message(key: str, **headers: Any) -> str:
    return json.dumps({"body": key, "headers": {"task": SYNC_TASK, SENT: 1.0} | headers})


def test_messages_of_an_earlier_release_are_moved(redis: Redis) -> None:
    """What waits in, or was taken from, its lanes comes into those of today, in order, once."""
    for key in ("a", "b"):
        redis.lpush("live", _message(key))
    redis.lpush("live\x06\x163", _message("urgent"))
    redis.hset("unacked", "tag", json.dumps([json.loads(_message("held")), "", "backfill"]))
    redis.zadd("unacked_index", {"tag": 1})
    assert adopt(redis, "audiofuse") == 4
    assert adopt(redis, "audiofuse") == 0
    waiting = [json.loads(each)["body"] for each in redis.lrange("audiofuse:live", 0, -1)]
    assert waiting == ["b", "a"]
    assert redis.llen("audiofuse:live\x06\x163") == 1
    assert json.loads(redis.lindex("audiofuse:backfill", 0))["body"] == "held"  # type: ignore[arg-type]
    assert not redis.exists("live", "unacked", "unacked_index")


def test_messages_of_another_application_stay(redis: Redis) -> None:
    """Whoever else names a queue ``live`` keeps what is in it, readable or not."""
    foreign = ["no JSON", json.dumps({"headers": {"task": "theirs"}}), "[1]"]
    redis.rpush("live", *foreign)
    redis.hset("unacked", mapping={"1": "no JSON", "2": json.dumps([{}, "", "celery"])})
    assert adopt(redis, "audiofuse") == 0
    assert redis.lrange("live", 0, -1) == foreign
    assert redis.hlen("unacked") == 2


def test_a_client_finds_the_new_primary(redis: Redis, valkey_url: str) -> None:
    """After READONLY the connection is made anew, so that it leads where the address now leads."""
    client = connect_redis(Settings(broker_url=valkey_url))
    client.set("key", 1)
    before = client.client_id()
    redis.replicaof("127.0.0.1", "1")
    try:
        with pytest.raises(Exception, match="read only"):
            client.set("key", 2)
    finally:
        redis.replicaof("no", "one")
    assert client.client_id() != before
