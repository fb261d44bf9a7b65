"""A server that refuses is waited for: no worker ends, no message is lost."""

import socket
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
from celery import Celery
from redis import Redis, RedisError
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError

from audiofuse.core.settings import Settings
from audiofuse.workers.queue import transport
from audiofuse.workers.queue.broker import create_celery
from audiofuse.workers.queue.lanes import Lanes
from audiofuse.workers.queue.transport import Channel

Eventually = Callable[..., Any]
Send = Callable[..., None]
Taking = Callable[..., AbstractContextManager[Any]]
Working = Callable[[], AbstractContextManager[list[str]]]


REFUSALS = {
    "READONLY": (["replicaof", "127.0.0.1", "1"], ["replicaof", "no", "one"]),
    "OOM": (["config", "set", "maxmemory", "1"], ["config", "set", "maxmemory", "0"]),
    "NOPERM": (["acl", "setuser", "default", "-eval"], ["acl", "setuser", "default", "+eval"]),
    "NOREPLICAS": (
        ["config", "set", "min-replicas-to-write", "1"],
        ["config", "set", "min-replicas-to-write", "0"],
    ),
}


@pytest.mark.parametrize(("refuse", "mend"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_server_that_refuses_is_asked_again(  # noqa: PLR0913, PLR0917
    redis: Redis, lanes: Lanes, send: Send, taking: Taking, refuse: list[str], mend: list[str],
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It is told once, waited for with back-off, and asked on a new connection; nothing is lost."""
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(transport, "MAX_PAUSE_S", 0.1)
    with taking() as taker:
        send("before")
        taker.take(1)
        send("owl.wav")
        redis.execute_command(*refuse)
        try:
            eventually(lambda: taker.turn() or taker.channel._pause_s == 0.1)
            taker.channel.qos.restore_visible(interval=1)
            assert taker.keys() == ["before"]
        finally:
            redis.execute_command(*mend)
        taker.take(2)
        assert lanes.lengths() == {"live": 0, "backfill": 0, "unacknowledged": 2}
    told = [line for line in caplog.messages if "hands out no messages" in line]
    assert len(told) == 1


def test_a_pop_leaves_a_refusing_server_alone_for_a_while(
    taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause doubles up to its bound, and ends with the first answer."""
    with taking() as taker:
        taker.turn()
        channel, pauses = taker.channel, []
        for _ in range(8):
            channel._leave_alone(RedisError("no"))
            pauses.append(channel._pause_s)
        assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
        asked: list[object] = []
        monkeypatch.setattr(channel.client.connection, "send_command", lambda *a: asked.append(a))
        channel._brpop_start()
        assert not asked


@pytest.mark.parametrize(
    ("refusal", "kind"), [("READONLY", ReadOnlyError), ("OOM", OutOfMemoryError)]
)
def test_a_worker_outlives_a_refusal(  # noqa: PLR0913, PLR0917
    redis: Redis, send: Send, working: Working, refusal: str, kind: type[Exception],
    eventually: Eventually, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It goes on by itself once the server takes messages again, also if it must connect anew."""
    monkeypatch.setattr(transport, "FIRST_PAUSE_S", 0.05)
    refused: list[Exception] = []
    leave_alone = Channel._leave_alone

    def note(channel: Channel, error: Exception) -> None:
        refused.append(error)
        leave_alone(channel, error)

    monkeypatch.setattr(Channel, "_leave_alone", note)
    refuse, mend = REFUSALS[refusal]
    with working() as done:
        send("before.wav")
        eventually(lambda: done)
        redis.execute_command(*refuse)

        def is_refused() -> bool:  # or, if it was about to acknowledge, has lost its connection
            known = any(isinstance(error, kind) for error in refused)
            return known or "takes no messages" in caplog.text

        try:
            eventually(is_refused)
        finally:
            redis.execute_command(*mend)
        send("after.wav")
        eventually(lambda: "after.wav" in done)


def test_a_server_that_takes_no_writes_counts_as_away(app: Celery, redis: Redis) -> None:
    """So whoever connects meanwhile tries again as for one that is not there, and does not end."""
    redis.replicaof("127.0.0.1", "1")
    try:
        with app.connection_for_read() as connection:
            with pytest.raises(connection.connection_errors, match="takes no messages"):
                connection.connect()
            errors: list[Exception] = []

            def mend(error: Exception, _: float) -> None:
                errors.append(error)
                redis.replicaof("no", "one")

            connection.ensure_connection(mend, interval_start=0.01)
            assert len(errors) == 1
    finally:
        redis.replicaof("no", "one")


def test_a_server_that_asks_for_a_password_is_waited_for(
    redis: Redis, valkey_url: str, send: Send, taking: Taking
) -> None:
    """NOAUTH is a connection that failed: Celery connects anew until it is let in."""
    send("owl.wav")
    with taking() as taker:
        redis.config_set("requirepass", "secret")
        try:
            with Redis.from_url(valkey_url, password="secret") as other:
                other.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(taker.connection.connection_errors):
                taker.take(2)
        finally:
            with Redis.from_url(valkey_url, password="secret") as other:
                other.config_set("requirepass", "")


def test_a_server_that_loads_is_waited_for(
    send: Send, taking: Taking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LOADING is a connection that failed: the next turn connects anew, and takes the messages."""
    with taking() as taker:
        with monkeypatch.context() as patch:
            loading = Mock(side_effect=BusyLoadingError("LOADING"))
            patch.setattr(taker.channel.client, "parse_response", loading)
            with pytest.raises(taker.connection.connection_errors, match="LOADING"):
                taker.take(1)
        send("owl.wav")
        taker.take(1)


class Door:
    """Stands before a server, and answers whoever comes first with a refusal."""

    def __init__(self, server: str, refusal: str, times: int) -> None:
        self._server = (urlsplit(server).hostname, urlsplit(server).port)
        self._refusals = [f"-{refusal}\r\n".encode()] * times
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self.socket.getsockname()[1]}/0"
        threading.Thread(target=self._open, daemon=True).start()

    def _open(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                visitor, _ = self.socket.accept()
                if self._refusals:
                    visitor.recv(65536)
                    visitor.sendall(self._refusals.pop())
                    visitor.close()
                    continue
                server = socket.create_connection(self._server)
                for pair in ((visitor, server), (server, visitor)):
                    threading.Thread(target=_relay, args=pair, daemon=True).start()


def _relay(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while said := source.recv(65536):
            target.sendall(said)
    target.close()


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ("NOAUTH Authentication required.", "AUDIOFUSE_BROKER_URL: Authentication required"),
        ("WRONGPASS invalid username-password pair", "AUDIOFUSE_BROKER_URL: invalid username"),
        ("LOADING Redis is loading the dataset in memory", "loading the dataset"),
        ("MASTERDOWN Link with MASTER is down", "MASTER is down"),
        ("ERR max number of clients reached", "max number of clients"),
    ],
)
def test_a_server_that_lets_nobody_in_is_waited_for(
    valkey_url: str, redis: Redis, refusal: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it says, whoever connects tries again until it is let in, and knows why."""
    del redis
    monkeypatch.setattr(ExponentialWithJitterBackoff, "compute", lambda *_: 0.0)
    door = Door(valkey_url, refusal, 30)  # redis-py itself tries a few times
    errors: list[str] = []
    with closing(door.socket), create_celery(Settings(broker_url=door.url)).connection() as mine:
        mine.ensure_connection(
            lambda error, _: errors.append(str(error)), interval_start=0.01, interval_step=0
        )
        assert mine.default_channel.client.ping()
    assert errors
    assert all(told in error for error in errors)


def _errors(server: Redis) -> int:
    """Return how many answers of a server were errors."""
    return int(server.info("stats")["total_error_replies"])  # type: ignore[index]


def test_a_worker_outlives_a_password_that_was_changed(  # noqa: PLR0913, PLR0917
    redis: Redis, valkey_url: str, send: Send, working: Working, eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It is not let in for a while: told once, waited for, and then it goes on by itself."""
    with working() as done:
        send("before.wav")
        eventually(lambda: done)
        redis.config_set("requirepass", "secret")
        with Redis.from_url(valkey_url, password="secret") as other:
            before = _errors(other)
            try:
                other.client_kill_filter(_type="normal", skipme=True)
                eventually(lambda: _errors(other) > before + 12)
            finally:
                other.config_set("requirepass", "")
        send("after.wav")
        eventually(lambda: "after.wav" in done)
    assert len([line for line in caplog.messages if "AUDIOFUSE_BROKER_URL" in line]) == 1
