"""What becomes of a message: an error's class decides it."""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
from redis import Redis, RedisError

from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.items import ObjectInfo
from audiofuse.workers.indexing import breaker, retries
from audiofuse.workers.indexing import watchdog as watchdogs
from audiofuse.workers.indexing.items.sync import Synced
from audiofuse.workers.indexing.retries import (
    MAX_DELIVERIES,
    TRIES_IN_HAND,
    RetryPolicy,
    counted,
)
from audiofuse.workers.indexing.watchdog import Consumption, Watchdog
from audiofuse.workers.queue.dead_letters import DeadLetter
from audiofuse.workers.queue.deliveries import Deliveries
from audiofuse.workers.telemetry.names import Lane, Outcome

KEY = "owl.wav"
SENT = 1_000_000.0  # when the messages were first sent, as Unix time


class Script:
    """A syncer that does what it is told, one act for each call: the fault to inject."""

    def __init__(self, *acts: Synced | Exception) -> None:
        self.acts = list(acts)
        self.keys: list[str] = []
        self.given_up: list[tuple[str, Rejected]] = []
        self.cannot_give_up: list[Exception] = []

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

    def give_up(self, key: str, verdict: Rejected) -> None:
        """Take note, or fail as told."""
        if self.cannot_give_up:
            raise self.cannot_give_up.pop(0)
        self.given_up.append((key, verdict))

    def add(self, key: str, verdict: Rejected) -> None:
        """Stand in for the letters too."""
        self.given_up.append((key, verdict))

    def get(self, keys: Iterable[str]) -> dict[str, DeadLetter]:
        """Return the letters of what was given up."""
        wanted = set(keys)
        return {
            key: DeadLetter(key, verdict.reason, verdict.detail, "", "", 0.0, 1)
            for key, verdict in self.given_up
            if key in wanted
        }

    def clear(self, keys: Iterable[str]) -> None:
        """Forget letters."""
        gone = set(keys)
        self.given_up = [each for each in self.given_up if each[0] not in gone]

    @property
    def letters(self) -> "Script":
        """Return what keeps the letters."""
        return self


class Sent:
    """A dispatcher that keeps what it is given; it fails as often as it is told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, Lane]] = []
        self.sent: list[float | None] = []
        self.failures = 0

    def sync(self, key: str, lane: Lane, sent: float | None = None) -> None:
        """Take a message."""
        if self.failures:
            self.failures -= 1
            raise Unavailable("the broker is away")
        self.messages.append((key, lane))
        self.sent.append(sent)


class Bench:
    """The policy, with everything around it; it stands in for the report of outages, too."""

    def __init__(self) -> None:
        self.met: list[str] = []
        self.sent = Sent()
        self.stopping = threading.Event()
        self.script = Script()
        syncers = dict.fromkeys(Lane, self.script)
        self.policy = RetryPolicy(syncers, self.sent, self.stopping, report=self)  # type: ignore[arg-type]

    def meets(self, error: Exception) -> None:
        """Note what is waited for."""
        self.met.append(str(error))

    def works(self) -> None:
        """Note that nothing is waited for any more."""
        self.met.append("works")

    def settle(self, *acts: Synced | Exception, key: str = KEY) -> bool:
        """Settle one message whose syncs do as told."""
        self.script.acts = list(acts)
        return self.policy.settle(key, Lane.BACKFILL, SENT)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return a policy that does not wait."""
    monkeypatch.setattr(retries, "FIRST_BACKOFF_S", 0.0)
    monkeypatch.setattr(retries, "BUG_PAUSE_S", 0.0)
    monkeypatch.setattr(retries, "LATE_WRITE_S", 0.0)
    return Bench()


def test_a_rejection_is_settled_at_once(bench: Bench) -> None:
    """Rejected, which sync has recorded, is never tried again."""
    assert bench.settle(Rejected(Reason.SILENT, "all 2.0 s are silent"), Synced(Outcome.CREATED))
    assert len(bench.script.acts) == 1


def test_unavailable_is_tried_until_it_works(bench: Bench) -> None:
    """What is away is asked again, and that is not held against the object."""
    away = [Unavailable("the bucket is away"), RedisError("so are the letters")] * 2
    assert bench.settle(*away, Synced(Outcome.CREATED), Synced(Outcome.UNCHANGED))
    assert bench.script.acts == []
    assert not bench.script.given_up


def test_what_is_waited_for_is_reported_until_something_is_written(bench: Bench) -> None:
    """What is away, and what everything fails at; a look that finds nothing to do proves little."""
    away = [Unavailable("the bucket is away"), RedisError("so are the letters")]
    assert bench.settle(*away, *[Synced(Outcome.UNCHANGED)] * 2)
    assert bench.met == ["the bucket is away", "so are the letters"]
    assert bench.settle(Rejected(Reason.SILENT, "all 2.0 s are silent"))
    assert bench.settle(Synced(Outcome.UPDATED))
    assert bench.met[2:] == ["works"]
    for number in range(breaker.KEYS):
        bench.settle(*[KeyError("oops")] * MAX_DELIVERIES * TRIES_IN_HAND, key=f"{number}.wav")
    assert "object after object meets one error" in bench.met[-1]


def test_what_many_wait_for_is_told_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """One warning for each cause, however many objects it keeps and however often; then anew."""
    caplog.set_level("INFO")
    for round_ in (1, 2):
        for key in ("a.wav", "b.wav"):
            away = [Unavailable(f"refused with 401, request 10{key[0]}f{n}7f01") for n in range(4)]
            bench.settle(*away, RedisError("loading"), Unavailable(f"no {key}"), key=key)
        told = [each.message for each in caplog.records if each.levelname == "WARNING"]
        assert len(told) == 3 * round_, told
        assert told[-3].startswith("a.wav: again in 0 s, refused with 401")
        assert bench.settle(Synced(Outcome.CREATED), key="good.wav")
        assert caplog.text.count("nothing waits any more for") == 3 * round_


def test_a_write_that_comes_late_is_made_up_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What worked only after something was away is looked at again, after a while."""
    monkeypatch.setattr(retries, "LATE_WRITE_S", 0.2)
    started = time.monotonic()
    assert bench.settle(Unavailable("no answer"), *[Synced(Outcome.UPDATED)] * 2)
    assert time.monotonic() - started >= 0.2
    assert bench.script.acts == []


def test_what_stays_unavailable_makes_room_for_others(bench: Bench) -> None:
    """After some tries a message goes to the end of its lane, however long the broker is away."""
    bench.sent.failures = 2
    assert bench.settle(*[Unavailable("denied")] * TRIES_IN_HAND)
    assert bench.sent.messages == [(KEY, Lane.BACKFILL)]
    assert bench.sent.sent == [SENT]  # it is as old as it was


def test_a_stopping_worker_hands_back_what_is_not_begun(bench: Bench) -> None:
    """Once the worker stops no work begins, and nothing unfinished is acknowledged."""
    bench.stopping.set()
    assert not bench.settle(Synced(Outcome.CREATED))
    assert len(bench.script.acts) == 1


def test_a_stopping_worker_waits_for_nothing_that_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that waits for its next try is handed back at once."""
    monkeypatch.setattr(retries, "FIRST_BACKOFF_S", 30.0)
    threading.Timer(0.1, bench.stopping.set).start()
    started = time.monotonic()
    assert not bench.settle(Unavailable("away"), Synced(Outcome.CREATED))
    assert time.monotonic() - started < 5


def test_a_bug_is_tried_three_times(bench: Bench) -> None:
    """An unexpected exception is tried three times, then the object is given up with its words."""
    assert bench.settle(*[KeyError("oops")] * MAX_DELIVERIES, Synced(Outcome.CREATED))
    assert len(bench.script.acts) == 1
    ((key, verdict),) = bench.script.given_up
    assert (key, verdict.reason, verdict.detail) == (KEY, Reason.BUG, "KeyError: 'oops'")


def test_a_bug_in_giving_up_is_recorded_too(bench: Bench) -> None:
    """Whatever is broken, a message ends as a letter, and the worker lives on."""
    bench.script.cannot_give_up = [Unavailable("away"), ValueError("no such collection")]
    bugs = [KeyError("oops")] * MAX_DELIVERIES
    assert bench.settle(*bugs, *bugs, Synced(Outcome.UNCHANGED))
    assert [key for key, _ in bench.script.given_up] == [KEY]


def test_a_bug_about_a_sidecar_is_that_messages_own(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing that is not understood costs the sidecar's message, not the worker."""
    tries = []

    def broken(_: Script, prefix: str) -> Iterator[ObjectInfo]:
        tries.append(prefix)
        raise KeyError("NextContinuationToken")

    monkeypatch.setattr(Script, "list", broken)
    assert bench.settle(key="owl.json")
    ((key, verdict),) = bench.script.given_up
    assert (key, verdict.reason, len(tries)) == ("owl.json", Reason.BUG, MAX_DELIVERIES)


def test_what_refuses_everything_is_an_outage_and_costs_no_object(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Key after key with one error: they wait, those given up before are tried anew, told once."""
    keys = [f"{number}.wav" for number in range(breaker.KEYS + 2)]
    for key in keys:
        bugs = [ValueError(f"403 for {key}") for _ in range(MAX_DELIVERIES * TRIES_IN_HAND)]
        assert bench.settle(*bugs, key=key)
    assert bench.script.given_up == []
    assert {key for key, _ in bench.sent.messages} == set(keys)  # all of them wait in the queue
    assert caplog.text.count("met the same error") == 1
    assert bench.settle(Synced(Outcome.CREATED), key="good.wav")
    assert "the outage is over" in caplog.text
    assert bench.settle(*[ValueError("403 for 0.wav")] * MAX_DELIVERIES, key="0.wav")
    assert [key for key, _ in bench.script.given_up] == ["0.wav"]


@pytest.mark.parametrize("between", [Synced(Outcome.UPDATED), ValueError("another error")])
def test_bugs_of_single_objects_are_no_outage(bench: Bench, between: Synced | Exception) -> None:
    """As long as others are written, or fail otherwise, each bad object has its letter."""
    for number in range(2 * breaker.KEYS):
        bench.settle(*[KeyError("oops")] * MAX_DELIVERIES, key=f"{number}.wav")
        acts = [between] * MAX_DELIVERIES
        bench.settle(*acts, key="between.wav")
    given_up = {key for key, _ in bench.script.given_up}
    assert given_up - {"between.wav"} == {f"{number}.wav" for number in range(2 * breaker.KEYS)}


def test_a_try_that_takes_too_long_ends_the_process() -> None:
    """What is in hand for longer than its bound is told, and the process does not live on."""
    ends: list[str] = []
    watchdog = Watchdog(lambda: ends.append("ended"))  # type: ignore[arg-type, return-value]
    with watchdog.step("work on a.wav", 60.0):
        watchdog.look()
        assert ends == []
        with watchdog.step("fetching a.wav", -1.0):
            watchdog.look()
    assert ends == ["ended"]
    watchdog.look()
    assert ends == ["ended"]


@pytest.mark.parametrize(
    ("waiting", "in_hand", "is_ended"), [(3, 0, True), (0, 0, False), (3, 1, False)]
)
def test_a_worker_that_takes_nothing_although_some_waits_ends(
    monkeypatch: pytest.MonkeyPatch, waiting: int, in_hand: int, *, is_ended: bool
) -> None:
    """Messages that wait, with none in hand, for too long end it; idle or at work it goes on."""
    ends: list[str] = []
    consumption = Consumption(lambda: ends.append("ended"))  # type: ignore[arg-type, return-value]
    consumption.look(waiting, in_hand)
    assert ends == []  # not for long yet
    later = time.monotonic() + 301
    monkeypatch.setattr(watchdogs.time, "monotonic", lambda: later)
    consumption.turns()
    consumption.look(waiting, in_hand)
    assert bool(ends) is is_ended


def test_a_loop_that_stands_still_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that has messages in hand: nobody would acknowledge them."""
    ends: list[str] = []
    consumption = Consumption(lambda: ends.append("ended"))  # type: ignore[arg-type, return-value]
    later = time.monotonic() + 301
    monkeypatch.setattr(watchdogs.time, "monotonic", lambda: later)
    consumption.goes_on()
    consumption.look(0, 5)
    assert ends == ["ended"]


def test_work_is_watched_while_it_lasts(bench: Bench) -> None:
    """Each try is within a step of the watchdog, and waiting for the next one is not."""
    seen: list[str] = []

    @contextmanager
    def watched(key: str) -> Iterator[None]:
        seen.append(f"begin {key}")
        try:
            yield
        finally:
            seen.append(f"end {key}")

    syncers = dict.fromkeys(Lane, bench.script)
    policy = RetryPolicy(syncers, bench.sent, bench.stopping, watched)  # type: ignore[arg-type]
    bench.script.acts = [Unavailable("away"), Synced(Outcome.CREATED), Synced(Outcome.UNCHANGED)]
    assert policy.settle(KEY, Lane.LIVE)
    assert seen == [f"begin {KEY}", f"end {KEY}"] * 3


def test_a_sidecar_stands_for_all_it_may_describe(bench: Bench) -> None:
    """A sidecar's message becomes one for every sound that it may belong to, and nothing else."""
    assert bench.settle(key="owl.json")
    assert bench.sent.messages == [("owl.wav", Lane.BACKFILL), ("owl.flac", Lane.BACKFILL)]
    assert not bench.script.keys


def test_a_sidecar_named_like_a_sound_stands_for_that_sound_too(bench: Bench) -> None:
    """owl.mp3.json may describe owl.mp3, and also owl.mp3.wav."""
    assert bench.settle(key="owl.mp3.json")
    keys = [key for key, _ in bench.sent.messages]
    assert keys == ["owl.mp3", "owl.mp3.wav", "owl.mp3.flac"]


def test_an_object_that_kills_its_worker_is_given_up(redis: Redis) -> None:
    """Decodings are counted before they begin: after three that never ended it is not tried."""
    for _ in range(MAX_DELIVERIES):
        Deliveries(redis, "audiofuse", 60).begin(KEY)
    redis.delete(*redis.keys("audiofuse:alive:*"))  # as of workers that died at once
    deliveries = Deliveries(redis, "audiofuse", 60)
    with pytest.raises(Rejected, match="died 3 times") as caught, counted(deliveries, KEY):
        pytest.fail("it is decoded")
    assert caught.value.reason is Reason.BUG
    with counted(deliveries, KEY):  # replayed later, it has its chances again
        pass


def test_a_decoding_is_counted_before_it_begins(redis: Redis) -> None:
    """Its very first step may kill the worker; and then the count is there, until it ends."""
    with counted(Deliveries(redis, "audiofuse", 60), KEY):
        assert len(redis.keys("audiofuse:deliveries:*")) == 1
    assert redis.keys("audiofuse:deliveries:*") == []


def test_what_ends_is_not_counted(redis: Redis) -> None:
    """Neither success nor failure of a decoding brings an object nearer to being given up."""
    for _ in range(2 * MAX_DELIVERIES):
        with (
            pytest.raises(Rejected, match="cut off"),
            counted(Deliveries(redis, "audiofuse", 60), KEY),
        ):
            raise Rejected(Reason.DAMAGED, "cut off")


def test_what_cannot_be_counted_is_not_decoded() -> None:
    """While the broker is away nothing begins that might kill the worker."""
    nowhere = Deliveries(Redis(port=1, socket_connect_timeout=1), "audiofuse", 60)
    with pytest.raises(Unavailable, match="broker is away"), counted(nowhere, KEY):
        pytest.fail("it is decoded")
