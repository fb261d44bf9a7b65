"""What workers wait for, as whoever asks for the state of a deployment sees it."""

import time

import pytest
from redis import Redis, RedisError

from audiofuse.core.errors import Unavailable
from audiofuse.workers.queue import outages as module
from audiofuse.workers.queue.outages import Outage, OutageReport, Outages

LOCKED = Unavailable("Qdrant is locked for writing: unlock it")


def test_an_outage_is_shown_from_its_first_error_until_something_works(redis: Redis) -> None:
    """Whoever looks sees the worker, its error and since when; of other buckets nothing."""
    outages, before = Outages(redis, "audiofuse"), time.time()
    report = OutageReport(outages, "worker a:1")
    OutageReport(Outages(redis, "other"), "worker b:1").meets(LOCKED)
    assert outages.current() == []
    report.meets(LOCKED)
    (outage,) = outages.current()
    assert (outage.worker, outage.error) == ("worker a:1", str(LOCKED))
    assert before <= outage.since <= time.time()
    report.works()
    assert outages.current() == []


def test_an_outage_began_with_its_first_error(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later errors are told, in their own words, and change nothing about when it began."""
    monkeypatch.setattr(module, "SAY_EVERY_S", 0.0)
    outages = Outages(redis, "audiofuse")
    report = OutageReport(outages, "worker a:1")
    report.meets(LOCKED)
    (first,) = outages.current()
    report.meets(Unavailable("the disk is full"))
    assert outages.current() == [Outage("worker a:1", "the disk is full", first.since)]
    report.works()
    report.meets(LOCKED)
    (second,) = outages.current()
    assert second.since > first.since


def test_many_threads_that_wait_do_not_flood_the_broker(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is met again within a second is not said again."""
    outages, said = Outages(redis, "audiofuse"), []
    monkeypatch.setattr(outages, "stands", said.append)
    report = OutageReport(outages, "worker a:1")
    for _ in range(50):
        report.meets(LOCKED)
    assert len(said) == 1
    report.works()
    report.meets(LOCKED)  # a new one is said at once
    assert len(said) == 2


def test_a_worker_that_says_nothing_more_waits_no_more(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was killed, or whose messages others took, is shown for a while only."""
    monkeypatch.setattr(module, "STANDS_S", 0.0)
    outages = Outages(redis, "audiofuse")
    outages.stands(Outage("worker a:1", "locked", 0.0))
    assert outages.current() == []
    monkeypatch.setattr(module, "STANDS_S", 30.0)
    outages.stands(Outage("worker b:1", "locked", 0.0))
    assert [outage.worker for outage in outages.current()] == ["worker b:1"]
    assert 0 < redis.ttl("audiofuse:outages") <= 30  # type: ignore[operator]


def test_a_broker_that_is_away_too_is_no_further_error(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work goes on, or waits, as it would if nobody were told."""

    def away(*_: object) -> None:
        raise RedisError("away")

    outages = Outages(redis, "audiofuse")
    monkeypatch.setattr(outages, "stands", away)
    monkeypatch.setattr(outages, "over", away)
    report = OutageReport(outages, "worker a:1")
    report.meets(LOCKED)
    assert report.error == str(LOCKED)
    report.works()
    assert not report.error
