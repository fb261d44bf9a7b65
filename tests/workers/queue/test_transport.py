"""The transport: no message is ever nowhere, whatever stands in the queue and whatever refuses."""

import base64
import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from celery import Celery
from kombu.transport.redis import Channel as KombuChannel
from redis import Redis, RedisError

from audiofuse.workers.queue import transport
from audiofuse.workers.queue.lanes import SYNC_TASK, Lanes
from audiofuse.workers.telemetry.names import Lane

Eventually = Callable[..., Any]
Send = Callable[..., None]
Taking = Callable[..., AbstractContextManager[Any]]
Working = Callable[[], AbstractContextManager[list[str]]]
LIVE = "audiofuse:live"


def test_messages_acknowledged_in_one_go_are_acknowledged_each(
    redis: Redis, lanes: Lanes, send: Send, taking: Taking
) -> None:
    """Those that are finished are gone from the broker, the others are handed back in the end."""
    send(*"01234")
    with taking(at_most=5) as taker:
        taker.channel.qos.gathers = True
        taker.take(5)
        taker.taken[1].ack()
        taker.taken[3].reject()
        assert lanes.lengths()["unacknowledged"] == 5
        taker.channel.qos.acknowledge()
        assert lanes.lengths() == {"live": 0, "backfill": 0, "unacknowledged": 3}
    waiting = map(json.loads, redis.lrange(LIVE, 0, -1))
    left = [message["properties"]["delivery_tag"] for message in waiting]
    assert sorted(left) == sorted(taker.taken[number].delivery_tag for number in (0, 2, 4))
    assert lanes.lengths()["unacknowledged"] == 0


def test_an_acknowledgement_that_fails_keeps_nobody_from_working(
    lanes: Lanes, send: Send, taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have their places meanwhile, and it is tried again."""

    def away(*_: object, **__: object) -> None:
        raise RedisError("away")

    send(*"01234")
    with taking(at_most=5) as taker:
        taker.take(5)
        held = taker.channel.qos
        held.gathers = True
        assert not held.can_consume()
        monkeypatch.setattr(held, "pipe_or_acquire", away)
        for message in taker.taken:
            message.ack()
        with pytest.raises(RedisError):
            held.acknowledge()
        assert held.can_consume()
        assert lanes.lengths()["unacknowledged"] == 5
        monkeypatch.undo()
        held.acknowledge()
        assert lanes.lengths()["unacknowledged"] == 0


def test_commands_share_a_client_until_their_connections_are_given_up(taking: Taking) -> None:
    """As long as a pool of connections lives all commands are sent by one client, and then not."""
    with taking(at_most=1) as taker:
        with taker.channel.conn_or_acquire() as first, taker.channel.conn_or_acquire() as second:
            assert first is second
        assert first is not taker.channel.client
        taker.channel._disconnect_pools()
        with taker.channel.conn_or_acquire() as third:
            assert third.ping()
            assert third is not first


def _properties(**changes: Any) -> dict[str, Any]:
    info = {"exchange": "", "routing_key": "live"}
    return {"delivery_tag": "1", "delivery_info": info, "body_encoding": "base64"} | changes


def _envelope(**changes: Any) -> str:
    """Return a message as Celery writes it, with what is to be wrong about it."""
    message = {
        "body": base64.b64encode(b'[[], {"key": "foreign"}, {}]').decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": SYNC_TASK, "id": "1"},
        "properties": _properties(),
    }
    return json.dumps(message | changes)


FOREIGN = {
    "no JSON": "not json",
    "empty": "",
    "another type": "[1, 2]",
    "null": "null",
    "no properties": '{"body": "x"}',
    "properties that are none": _envelope(properties=[]),
    "no tag": _envelope(properties=_properties(delivery_tag=None)),
    "no routing key": _envelope(properties=_properties(delivery_info={})),
    "half a character": '{"headers": {"task": "sync", "x": "\\ud800"}}',
    "headers that are none": _envelope(headers="x"),
    "no task": _envelope(headers={}),
    "another's task": _envelope(headers={"task": "theirs", "id": "1"}),
    "a task that is none": _envelope(headers={"task": ["x"]}),
    "a body in base 65": _envelope(properties=_properties(body_encoding="base65")),
    "an unknown compression": _envelope(headers={"task": SYNC_TASK, "compression": "x"}),
    "a number that only Lua reads": _envelope().replace('"id": "1"', '"id": 0x10'),
    "too deep": _envelope(extra="x").replace('"x"', "[" * 3000 + "]" * 3000),
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_message_loses_no_other(
    redis: Redis, lanes: Lanes, send: Send, taking: Taking, foreign: str
) -> None:
    """Good messages before and after it are taken; it stands in the list of the broken ones."""
    send(*"abcd")
    redis.lpush(LIVE, foreign)
    send(*"efgh")
    with taking() as taker:
        taker.take(8)
        assert taker.keys() == [*"abcdefgh"]
        assert lanes.lengths() == {"live": 0, "backfill": 0, "unacknowledged": 8}
        for message in taker.taken:
            message.ack()
    assert redis.lrange("audiofuse:broken", 0, -1) == [foreign]
    assert lanes.broken() == 1
    assert not any(lanes.lengths().values())
    assert not redis.exists("audiofuse:unacked", "audiofuse:unacked_index")


def test_only_the_newest_broken_messages_are_kept(
    redis: Redis, lanes: Lanes, send: Send, taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many a misdirected sender writes, they do not fill the server."""
    monkeypatch.setattr(transport, "BROKEN_KEPT", 20)
    redis.lpush(LIVE, *(f"foreign {number}" for number in range(100)))
    send("owl.wav")
    with taking() as taker:
        taker.take(1)
    assert lanes.broken() == 20
    assert redis.lindex("audiofuse:broken", 0) == "foreign 99"


def test_a_pop_that_fails_half_way_loses_nothing(
    redis: Redis, send: Send, taking: Taking, eventually: Eventually
) -> None:
    """What it took before stays held, what it did not take waits: everything comes."""
    send(*"abcd")
    messages = redis.lrange(LIVE, 0, -1)
    redis.set("audiofuse:held:live", "this makes ZADD fail after the first write")
    with taking() as taker:
        eventually(lambda: taker.turn() or taker.channel._pause_s)
        assert redis.lrange(LIVE, 0, -1) == messages
        redis.delete("audiofuse:held:live")
        taker.channel._not_before = 0.0
        taker.take(4)
        assert taker.keys() == [*"abcd"]


def test_priorities_are_honoured(app: Celery, lanes: Lanes, send: Send, taking: Taking) -> None:
    """Within a lane 0 goes before 9; what has a priority is taken, held and counted like the rest.

    Which lane goes first is not theirs to say: the least urgent live message is before backfill.
    """
    for key, priority in {"last": 9, "third": 3, "first": 0}.items():
        app.send_task(SYNC_TASK, kwargs={"key": key}, queue="live", priority=priority)
    send("backfill", lane=Lane.BACKFILL)
    assert lanes.lengths() == {"live": 3, "backfill": 1, "unacknowledged": 0}
    with taking() as taker:
        taker.take(4)
        assert taker.keys() == ["first", "third", "last", "backfill"]
        assert lanes.lengths() == {"live": 0, "backfill": 0, "unacknowledged": 4}
    assert lanes.lengths() == {"live": 3, "backfill": 1, "unacknowledged": 0}  # where they were


def test_a_message_that_comes_later_is_taken(app: Celery, send: Send, taking: Taking) -> None:
    """Also of the other lane, or with a priority, while it waits for a live one."""
    with taking() as taker:
        for _ in range(3):
            taker.turn()
        send("live")
        taker.take(1)
        send("backfill", lane=Lane.BACKFILL)
        app.send_task(SYNC_TASK, kwargs={"key": "urgent"}, queue="live", priority=6)
        taker.take(3)
    assert sorted(taker.keys()) == ["backfill", "live", "urgent"]


def test_what_a_dead_worker_held_comes_back_by_the_servers_clock(
    redis: Redis, lanes: Lanes, send: Send, taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held for longer than the timeout it is handed out again, whatever a worker's clock says."""
    monkeypatch.setattr("kombu.transport.redis.time", lambda: 4e9)  # this worker's, decades ahead
    send("held", "lost")
    with taking() as taker:
        taker.take(2)
        seconds, _ = redis.time()
        redis.zadd("audiofuse:unacked_index", {taker.taken[1].delivery_tag: seconds - 6})
        taker.channel.qos.restore_visible(num=None, interval=1)
        assert lanes.lengths() == {"live": 1, "backfill": 0, "unacknowledged": 1}
        taker.take(3)
        assert taker.keys() == ["held", "lost", "lost"]
        assert taker.taken[2].delivery_info["redelivered"]


def test_a_worker_survives_what_others_write(
    redis: Redis, lanes: Lanes, send: Send, working: Working, eventually: Eventually
) -> None:
    """Celery's own loop goes on, whatever stood in the queue."""
    with working() as done:
        redis.lpush(LIVE, *FOREIGN.values())
        send("owl.wav")
        eventually(lambda: done == ["owl.wav"] and not any(lanes.lengths().values()))
    assert lanes.broken() == len(FOREIGN)


def test_an_answer_to_remote_control_is_no_message(
    app: Celery, redis: Redis, lanes: Lanes, working: Working
) -> None:
    """A ping's reply is never held: whoever asked forgets it, and it would count for ever."""
    with working():
        assert app.control.ping(timeout=10, limit=1)
        assert not any(lanes.lengths().values())
        assert not [key for key in redis.keys("*") if "unacked" in key or "held" in key]


def test_a_token_that_was_renewed_is_sent_between_two_requests(
    send: Send, taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where credentials expire (IAM, Entra) the connection that never rests stays logged in."""
    flushed: list[bool] = []
    monkeypatch.setattr(
        KombuChannel, "_flush_brpop_reauth", lambda self: flushed.append(not self._in_poll)
    )
    send("owl.wav")
    with taking() as taker:
        taker.take(1)
        assert flushed
        assert all(flushed)


def test_steps_of_priority_are_a_setting(app: Celery, redis: Redis, taking: Taking) -> None:
    """The lists that are asked are those of the transport's option, with its prefix of keys."""
    app.conf.broker_transport_options |= {"priority_steps": [0, 5], "global_keyprefix": "mine:"}
    app.send_task(SYNC_TASK, kwargs={"key": "owl.wav"}, queue="live", priority=7)
    assert redis.keys("mine:live*") == ["mine:live\x06\x165"]
    with taking() as taker:
        taker.take(1)
        assert redis.hlen("mine:unacked") == redis.zcard("mine:held:live") == 1


def test_a_message_is_held_before_it_is_popped(redis: Redis, send: Send, taking: Taking) -> None:
    """Killed between any two steps a worker leaves each message in its list, or held."""
    commands: list[str] = []
    send(*"abc")
    with redis.monitor() as monitor:
        watching = threading.Event()

        def watch() -> None:
            for entry in monitor.listen():
                commands.append(entry["command"].split()[0].upper())
                watching.set()
                if commands.count("RPOP") == 3:
                    return

        thread = threading.Thread(target=watch)
        thread.start()
        with taking() as taker:
            taker.take(3)
        thread.join(30)
    kept = [name for name in commands if name in {"HSET", "RPOP"}]
    assert kept[:6] == ["HSET", "RPOP"] * 3
