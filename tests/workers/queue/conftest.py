"""Fixtures: what takes messages as a worker does, with kombu alone or with Celery's own loop."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from redis import Redis

from audiofuse.core.settings import Settings
from audiofuse.workers.queue.broker import Dispatcher, create_celery
from audiofuse.workers.queue.lanes import SYNC_TASK, Lanes
from audiofuse.workers.queue.transport import Channel
from audiofuse.workers.telemetry.names import Lane


@pytest.fixture
def app(redis: Redis, valkey_url: str) -> Celery:
    """Return the Celery application on an empty Valkey."""
    del redis
    return create_celery(Settings(broker_url=valkey_url, redelivery_s=5))


@pytest.fixture
def lanes(redis: Redis) -> Lanes:
    """Return what tells of the lanes."""
    return Lanes(redis, "audiofuse")


@pytest.fixture
def send(app: Celery) -> Callable[..., None]:
    """Return what sends a message for each key."""

    def send(*keys: str, lane: Lane = Lane.LIVE) -> None:
        for key in keys:
            Dispatcher(app).sync(key, lane)

    return send


class Taker:
    """Takes messages as a worker does, and keeps them."""

    def __init__(self, connection: Any) -> None:
        self.taken: list[Any] = []
        self.connection = connection

    @property
    def channel(self) -> Channel:
        """The channel through which it takes."""
        return self.connection.default_channel  # type: ignore[no-any-return]

    def keys(self) -> list[str]:
        """Return the keys that the messages name, in the order in which they came."""
        return [message.payload[1]["key"] for message in self.taken]

    def take(self, count: int) -> None:
        """Take until there are so many in all."""
        for _ in range(200):
            if len(self.taken) >= count:
                return
            self.turn()
        pytest.fail(f"{len(self.taken)} of {count} messages came")

    def turn(self) -> None:
        """Look once whether something comes."""
        with suppress(TimeoutError):
            self.connection.drain_events(timeout=0.1)


@pytest.fixture
def taking(app: Celery) -> Callable[..., AbstractContextManager[Taker]]:
    """Return what takes messages of both lanes, at most so many at once."""

    @contextmanager
    def taking(at_most: int = 50) -> Iterator[Taker]:
        queues = [app.amqp.queues[lane.value] for lane in Lane]
        with app.connection_for_read() as connection:
            taker = Taker(connection)
            with connection.Consumer(
                queues, channel=connection.default_channel, prefetch_count=at_most,
                callbacks=[lambda _, message: taker.taken.append(message)],
            ):  # fmt: skip
                yield taker

    return taking


@pytest.fixture
def working(app: Celery) -> Callable[[], AbstractContextManager[list[str]]]:
    """Return what runs a Celery worker in a thread, and tells the keys that it has done."""

    @contextmanager
    def working() -> Iterator[list[str]]:
        done: list[str] = []

        def sync(key: str) -> None:
            done.append(key)

        app.task(name=SYNC_TASK, shared=False)(sync)
        with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=30):
            yield done

    return working
