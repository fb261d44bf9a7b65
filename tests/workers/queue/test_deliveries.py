"""Deaths while decoding: counted by object, for those that died and nobody else."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from audiofuse.workers.queue.deliveries import TAGS_TTL_S, Deliveries

Worker = Callable[[], Deliveries]
KEYS = ["rain.wav", "a b/ü.wav", "%s:*.wav", "new\nline.wav"]


@pytest.fixture
def worker(redis: Redis) -> Worker:
    """Return what makes the deliveries of one more worker."""
    return lambda: Deliveries(redis, "audiofuse", alive_s=60)


def _die(redis: Redis, *workers: Deliveries) -> None:
    for each in workers:
        redis.delete("audiofuse:alive:" + each._worker)


@pytest.mark.parametrize("key", KEYS)
def test_who_died_while_decoding_is_counted(redis: Redis, worker: Worker, key: str) -> None:
    """Each worker that began, did not finish and is gone is one death, for that object alone."""
    for deaths in range(3):
        dying = worker()
        assert dying.begin(key).deaths == deaths
        _die(redis, dying)
    assert worker().begin(key).deaths == 3
    assert worker().begin("another.wav").deaths == 0


def test_many_at_once_are_no_deaths(worker: Worker) -> None:
    """Four workers, and four threads of one, may decode one object together."""
    one = worker()
    begun = [each.begin("rain.wav") for each in (worker(), worker(), worker(), one, one, one, one)]
    assert [each.deaths for each in begun] == [0] * 7
    assert len({each.tag for each in begun}) == 7


def test_anothers_end_takes_no_death_away(redis: Redis, worker: Worker) -> None:
    """Who finishes takes the own tag away; those of the dead stay."""
    dying, other = worker(), worker()
    dying.begin("rain.wav")
    begun = other.begin("rain.wav")
    _die(redis, dying)
    other.finish("rain.wav", begun.tag)
    assert worker().begin("rain.wav").deaths == 1


def test_what_is_finished_leaves_nothing(redis: Redis, worker: Worker) -> None:
    """After its end a decoding is no death, even once its worker is gone."""
    done = worker()
    done.finish("rain.wav", done.begin("rain.wav").tag)
    _die(redis, done)
    assert redis.keys("*") == []


def test_a_verdict_forgets_the_deaths(redis: Redis, worker: Worker) -> None:
    """Whoever has an object tried again gives it new chances."""
    dying = worker()
    dying.begin("rain.wav")
    _die(redis, dying)
    worker().forget("rain.wav")
    assert worker().begin("rain.wav").deaths == 0


def test_who_says_so_is_alive(redis: Redis, worker: Worker) -> None:
    """A decoding may take longer than a sign of life lasts, as long as new ones come."""
    slow = worker()
    slow.begin("rain.wav")
    _die(redis, slow)
    slow.stay_alive()
    assert 0 < redis.pttl("audiofuse:alive:" + slow._worker) <= 60_000
    assert worker().begin("rain.wav").deaths == 0


def test_a_death_is_held_against_an_object_for_a_day(redis: Redis, worker: Worker) -> None:
    """Each new decoding renews the time; without any all is forgotten."""
    worker().begin("rain.wav")
    name = "audiofuse:deliveries:rain.wav"
    redis.expire(name, 100)
    worker().begin("rain.wav")
    assert 100 < redis.ttl(name) <= TAGS_TTL_S


def test_deliveries_of_many_threads_are_each_counted(redis: Redis, worker: Worker) -> None:
    """What goes to Redis together keeps apart whose it is."""
    busy, keys = worker(), [f"{number}.wav" for number in range(8)] * 3
    with ThreadPoolExecutor(24) as threads:
        begun = list(threads.map(busy.begin, keys))
        for key, each in list(zip(keys, begun, strict=True))[:-1]:
            busy.finish(key, each.tag)
    assert redis.smembers("audiofuse:deliveries:7.wav") == {begun[-1].tag}
    assert len(redis.keys("audiofuse:deliveries:*")) == 1
