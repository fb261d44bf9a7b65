"""Messages about one object that wait share one turn."""

import threading
import time
from collections import Counter

import pytest

from audiofuse.core.errors import Unavailable
from audiofuse.workers.indexing import retries
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
