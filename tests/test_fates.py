"""A message's fate: an error's class decides it."""

import threading
import time
from collections.abc import Iterator

import pytest
from redis import Redis, RedisError

from core.errors import Reason, Rejected, Unavailable
from core.items import ObjectInfo
from workers import fates
from workers.broker import Lane
from workers.dead_letters import DeadLetters, Deliveries
from workers.fates import MAX_DELIVERIES, TRIES_IN_HAND, Fates, KeyLocks, quarantine
from workers.sync import Outcome, Synced

KEY = "owl.wav"


class Script:
    """A syncer that does what it is told, one act for each call: the fault to inject."""

    def __init__(self, *acts: Synced | Exception) -> None:
        self.acts = list(acts)
        self.keys: list[str] = []

    @property
    def store(self) -> "Script":
        """Stand in for the bucket too."""
        return self

    def head(self, key: str) -> ObjectInfo:
        """Know one state of each object."""
        return ObjectInfo(key, "state-1", size=1, modified_ms=0)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """List sounds, some of which a sidecar may describe."""
        yield from map(self.head, (f"{prefix}wav", f"{prefix}flac", f"{prefix}txt"))

    def sync(self, key: str) -> Synced:
        """Return or raise the next act."""
        self.keys.append(key)
        act = self.acts.pop(0)
        if isinstance(act, Exception):
            raise act
        return act


class Sent:
    """A dispatcher that keeps what it is given; it fails as often as it is told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Lane]] = []
        self.failures = 0

    def sync(self, key: str, lane: Lane) -> None:
        """Take a message."""
        if self.failures:
            self.failures -= 1
            raise Unavailable("the broker is away")
        self.messages.append((key, lane))


class Bench:
    """The fates of messages, with everything around them."""

    def __init__(self, redis: Redis) -> None:
        self.letters = DeadLetters(redis)
        self.sent = Sent()
        self.stopping = threading.Event()
        self.script = Script()

    def settle(self, *acts: Synced | Exception, key: str = KEY) -> bool:
        """Settle one message whose syncs do as told."""
        self.script = Script(*acts)
        syncers = dict.fromkeys(Lane, self.script)
        subject = Fates(syncers, self.letters, self.sent, self.stopping)  # type: ignore[arg-type]
        return subject.settle(key, Lane.BACKFILL)


@pytest.fixture
def bench(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return fates that do not wait."""
    monkeypatch.setattr(fates, "FIRST_BACKOFF_S", 0.0)
    return Bench(redis)


def test_a_rejection_is_a_dead_letter_at_once(bench: Bench) -> None:
    """Rejected is recorded with its reason and never tried again."""
    assert bench.settle(Rejected(Reason.SILENT, "all 2.0 s are silent"))
    letter = bench.letters.get([KEY])[KEY]
    assert (letter.reason, letter.detail) == (Reason.SILENT, "all 2.0 s are silent")


def test_unavailable_is_tried_until_it_works(bench: Bench) -> None:
    """What is away is asked again, and that is not held against the object."""
    away = [Unavailable("the bucket is away")] * (MAX_DELIVERIES + 2)
    assert bench.settle(*away, Synced(Outcome.CREATED))
    assert bench.script.acts == []
    assert bench.letters.count() == 0


def test_what_stays_unavailable_makes_room_for_others(bench: Bench) -> None:
    """After some tries a message goes to the end of its lane, however long the broker is away."""
    bench.sent.failures = 2
    assert bench.settle(*[Unavailable("denied")] * TRIES_IN_HAND)
    assert bench.sent.messages == [(KEY, Lane.BACKFILL)]


def test_a_verdict_that_cannot_be_recorded_is_no_verdict(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message is not acknowledged before its rejection is recorded."""
    add, failures = bench.letters.add, [RedisError("away")]

    def fail_then_add(key: str, verdict: Rejected) -> None:
        if failures:
            raise failures.pop()
        add(key, verdict)

    monkeypatch.setattr(bench.letters, "add", fail_then_add)
    assert bench.settle(*[Rejected(Reason.SILENT, "silent")] * 2)
    assert bench.letters.count() == 1


def test_a_stopping_worker_hands_back_what_is_not_begun(bench: Bench) -> None:
    """Once the worker stops no work begins, and nothing unfinished is acknowledged."""
    bench.stopping.set()
    assert not bench.settle(Synced(Outcome.CREATED))
    assert len(bench.script.acts) == 1


def test_a_stopping_worker_waits_for_nothing_that_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that waits for its next try is handed back at once."""
    monkeypatch.setattr(fates, "FIRST_BACKOFF_S", 30.0)
    threading.Timer(0.1, bench.stopping.set).start()
    started = time.monotonic()
    assert not bench.settle(Unavailable("away"), Synced(Outcome.CREATED))
    assert time.monotonic() - started < 5


def test_a_bug_is_tried_three_times(bench: Bench) -> None:
    """An unexpected exception is tried three times, then dead-lettered with its words."""
    assert bench.settle(*[KeyError("oops")] * MAX_DELIVERIES, Synced(Outcome.CREATED))
    assert len(bench.script.acts) == 1
    letter = bench.letters.get([KEY])[KEY]
    assert (letter.reason, letter.detail) == (Reason.BUG, "KeyError: 'oops'")
    assert letter.etag == "state-1"  # so that reconcile leaves this state alone


def test_a_sidecar_stands_for_all_it_may_describe(bench: Bench) -> None:
    """The message of a sidecar syncs every sound that it may belong to, and nothing else."""
    assert bench.settle(*[Synced(Outcome.REFUSED)] * 2, key="owl.json")
    assert bench.script.keys == ["owl.wav", "owl.flac"]


def test_a_good_outcome_clears_old_letters(bench: Bench) -> None:
    """Once an item is indexed nothing is held against it or its sidecars."""
    for key in (KEY, KEY + ".json", "owl.json", "other.wav"):
        bench.letters.add(key, Rejected(Reason.NOT_AUDIO, "no sound"))
    bench.settle(Synced(Outcome.UPDATED))
    assert [letter.key for letter in bench.letters.latest(10)] == ["other.wav"]


def test_a_broken_sidecar_is_reported(bench: Bench) -> None:
    """What is wrong with a sidecar is a letter of its own, kept while nothing changes."""
    problem = Rejected(Reason.BAD_SIDECAR, "not JSON")
    bench.settle(Synced(Outcome.CREATED, {KEY + ".json": problem}))
    bench.settle(Synced(Outcome.UNCHANGED))
    assert [letter.key for letter in bench.letters.latest(10)] == [KEY + ".json"]


def test_an_object_that_kills_its_worker_is_given_up(redis: Redis) -> None:
    """Decodings are counted before they begin: after three that never ended it is not tried."""
    deliveries = Deliveries(redis)
    for _ in range(MAX_DELIVERIES):
        deliveries.begin(KEY)  # as by a worker that died at once
    guard = quarantine(deliveries)
    with pytest.raises(Rejected, match="died 3 times") as caught:
        list(guard(KEY, iter([])))
    assert caught.value.reason is Reason.BUG
    assert list(guard(KEY, iter([]))) == []  # replayed later, it has its chances again


def test_what_ends_is_not_counted(redis: Redis) -> None:
    """Neither success nor failure of a decoding brings an object nearer to being given up."""
    guard = quarantine(Deliveries(redis))

    def fails() -> Iterator[object]:
        raise Rejected(Reason.DAMAGED, "cut off")
        yield

    for _ in range(2 * MAX_DELIVERIES):
        with pytest.raises(Rejected, match="cut off"):
            list(guard(KEY, fails()))  # type: ignore[arg-type]


def test_one_thread_at_a_time_works_on_a_key() -> None:
    """Two messages about one key follow each other; another key does not wait."""
    locks, order = KeyLocks(), []

    def work() -> None:
        with locks.alone(KEY):
            order.append("second")

    thread = threading.Thread(target=work)
    with locks.alone(KEY):
        thread.start()
        with locks.alone("other.wav"):
            order.append("first")
        assert not order[1:]
    thread.join(5)
    assert order == ["first", "second"]
