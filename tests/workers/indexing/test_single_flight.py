"""Messages about one object that wait share one turn; those of one bucket leave room for others."""

import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from audiofuse.core.errors import Unavailable
from audiofuse.workers.indexing import retries
from audiofuse.workers.indexing.breaker import Seats
from audiofuse.workers.indexing.items.sync import Synced
from audiofuse.workers.indexing.retries import (
    RetryPolicy,
    SingleFlight,
)
from audiofuse.workers.telemetry.names import Lane, Outcome

KEY = "owl.wav"


class Bursts:
    """Many messages at once, about a syncer that takes as long as it is told."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.may_go_on, self.begun = threading.Event(), threading.Semaphore(0)
        self.error: Exception | None = None
        self.stopping = threading.Event()
        self.settled: dict[str, list[Outcome | None]] = {}
        self.policy = RetryPolicy(dict.fromkeys(Lane, self), None, self.stopping)  # type: ignore[arg-type]
        self._threads: list[threading.Thread] = []

    def sync(self, key: str) -> Synced:
        """Sync, slowly."""
        self.keys.append(key)
        self.begun.release()
        assert self.may_go_on.wait(10)
        if error := self.error:
            self.error = None
            raise error
        return Synced(Outcome.UPDATED)

    def send(self, *keys: str) -> None:
        """Send messages; return once each waits or works."""
        for key in keys:
            thread = threading.Thread(target=self._settle, args=(key,))
            thread.start()
            self._threads.append(thread)
        time.sleep(0.1)

    def _settle(self, key: str) -> None:
        settled = self.policy.settle(key, Lane.LIVE)
        self.settled.setdefault(key, []).append(settled)

    def end(self) -> None:
        """Wait for all messages."""
        for thread in self._threads:
            thread.join(10)


def test_messages_that_wait_share_one_turn() -> None:
    """Of ten messages about a key that come while the first is worked on one look serves all."""
    bursts = Bursts()
    bursts.send(KEY)
    bursts.send(*[KEY] * 9, "other.wav")
    assert bursts.keys == [KEY, "other.wav"]  # another key does not wait
    bursts.may_go_on.set()
    bursts.end()
    assert bursts.keys == [KEY, "other.wav", KEY]
    assert bursts.settled == {KEY: [Outcome.UPDATED] * 10, "other.wav": [Outcome.UPDATED]}


def test_who_comes_after_a_turn_began_has_another() -> None:
    """A message never shares a look that may have been before it."""
    bursts = Bursts()
    for _ in range(3):
        bursts.send(KEY)
    bursts.may_go_on.set()
    bursts.end()
    assert len(bursts.keys) == 2
    bursts.send(KEY)
    bursts.end()
    assert len(bursts.keys) == 3


def test_a_shared_turn_that_fails_settles_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that shared a turn are not acknowledged unless it ended well: they try again."""
    monkeypatch.setattr(retries, "FIRST_BACKOFF_S", 30.0)
    bursts = Bursts()
    bursts.send(KEY)
    bursts.error = Unavailable("away")  # for the first
    bursts.may_go_on.set()
    bursts.send()
    bursts.may_go_on.clear()
    bursts.send(KEY)
    bursts.send(KEY, KEY)  # share the turn after
    bursts.stopping.set()
    bursts.may_go_on.set()
    bursts.end()
    assert Counter(bursts.settled[KEY]) == {None: 3, Outcome.UPDATED: 1}
    assert len(bursts.keys) == 2


def test_turns_leave_nothing_behind() -> None:
    """What is remembered of a key goes with its last message."""
    turns = SingleFlight[None]()
    turns.take(KEY, lambda: None)
    with pytest.raises(KeyError):
        turns.take(KEY, lambda: {}[KEY])
    assert not turns._now
    assert not turns._next


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for nothing."""
    for name in ("FIRST_BACKOFF_S", "LATE_WRITE_S"):
        monkeypatch.setattr(retries, name, 0.0)


@pytest.mark.usefixtures("no_pauses")
def test_messages_of_a_bucket_that_is_away_leave_room_for_others() -> None:
    """Once enough of them wait the next goes to the end of its lane untried."""
    tried: list[str] = []
    sent: list[str] = []
    away = [Unavailable("it is away")]

    def sync(key: str) -> Synced:
        tried.append(key)
        if key.startswith("away/") and away:
            raise away.pop()
        return Synced(Outcome.CREATED)

    seats = Seats(lambda key: key.partition("/")[0], 1)
    dispatcher: Any = SimpleNamespace(sync=lambda key, *_: sent.append(key))
    syncers: Any = dict.fromkeys(Lane, SimpleNamespace(sync=sync))
    policy = RetryPolicy(syncers, dispatcher, threading.Event(), seats=seats)
    with seats.taken("away/1.wav"):
        assert policy.settle("away/2.wav", Lane.LIVE) is Outcome.LATER
        assert policy.settle("here/1.wav", Lane.LIVE) is Outcome.CREATED
    assert (tried, sent) == (["here/1.wav"], ["away/2.wav"])
    assert policy.settle("away/2.wav", Lane.LIVE) is Outcome.CREATED
    assert not seats.are_taken("away/2.wav")


def test_where_one_bucket_is_all_everything_may_wait() -> None:
    """There is nothing else that could be worked on."""
    seats = Seats()
    with seats.taken("a.wav"), seats.taken("b.wav"):
        assert not seats.are_taken("c.wav")
