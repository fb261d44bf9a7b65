"""Threads for messages: which of those in hand are worked on, and which wait."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from audiofuse.workers.indexing import message_threads
from audiofuse.workers.indexing.message_threads import MessageThreads
from audiofuse.workers.queue.pool import Job
from audiofuse.workers.telemetry.names import Lane


class Work:
    """Messages of the backfill that are worked on until they are let go of."""

    def __init__(self) -> None:
        """Begin with none."""
        self.begun: list[str] = []
        self._done = threading.Semaphore(0)

    def do(self, key: str, lane: Lane) -> bool:
        """Work on a message."""
        self.begun.append(key)
        return lane is Lane.LIVE or self._done.acquire(timeout=20)

    def take(self, threads: MessageThreads, lane: Lane, count: int) -> None:
        """Have so many messages taken."""
        for number in range(count):
            key = f"{lane}-{number}"
            request = SimpleNamespace(id=key)
            work = partial(self.do, key, lane)
            threads.take(Job(request, lane, work, lambda _: None, lambda _: None))

    def finish(self, count: int) -> None:
        """Let go of so many."""
        self._done.release(count)


@pytest.fixture
def work() -> Iterator[Work]:
    """Return work that ends with the test."""
    work = Work()
    yield work
    work.finish(100)


def test_few_backfill_messages_are_worked_on_while_live_ones_come(
    work: Work, eventually: Callable[..., Any]
) -> None:
    """A live message leaves two of the backfill's at work; each that ends lets one more begin."""
    threads = MessageThreads(8, lambda: None, beside_live=2)
    work.take(threads, Lane.LIVE, 1)
    work.take(threads, Lane.BACKFILL, 5)
    eventually(lambda: len(work.begun) == 3)
    work.finish(2)
    eventually(lambda: len(work.begun) == 5)
    eventually(lambda: threads.at_work() == 2)


def test_the_backfill_has_every_place_when_no_live_message_comes(
    work: Work, eventually: Callable[..., Any]
) -> None:
    """Without live messages all that are in hand are worked on."""
    threads = MessageThreads(8, lambda: None, beside_live=2)
    work.take(threads, Lane.BACKFILL, 8)
    eventually(lambda: threads.at_work() == 8)


def test_the_backfill_gets_its_places_back(
    work: Work, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A while after the last live message the next that ends makes room for all that wait."""
    monkeypatch.setattr(message_threads, "CALM_S", 0.3)
    threads = MessageThreads(8, lambda: None, beside_live=1)
    work.take(threads, Lane.LIVE, 1)
    work.take(threads, Lane.BACKFILL, 6)
    eventually(lambda: threads.at_work() == 1)
    threading.Event().wait(0.4)
    work.finish(1)
    eventually(lambda: threads.at_work() == 5)


def test_live_messages_begin_before_backfill_that_came_earlier(
    work: Work, eventually: Callable[..., Any]
) -> None:
    """Of messages that wait for a thread live ones go first."""
    threads = MessageThreads(1, lambda: None)
    work.take(threads, Lane.BACKFILL, 3)
    eventually(lambda: threads.at_work() == 1)
    work.take(threads, Lane.LIVE, 1)
    work.finish(1)
    eventually(lambda: len(work.begun) >= 2)
    assert work.begun[:2] == ["backfill-0", "live-0"]


def test_what_has_not_begun_when_the_worker_stops_never_does(
    work: Work, eventually: Callable[..., Any]
) -> None:
    """It is handed back as it came; what is worked on may end."""
    threads = MessageThreads(1, lambda: None)
    work.take(threads, Lane.LIVE, 1)
    eventually(lambda: work.begun and not threads.at_work())
    work.take(threads, Lane.BACKFILL, 2)
    eventually(threads.at_work)
    threads.begin_no_more()
    work.finish(2)
    eventually(lambda: not threads.at_work())
    assert work.begun == ["live-0", "backfill-0"]
