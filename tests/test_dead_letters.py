"""Dead letters and delivery counts, in a real Valkey."""

import pytest
from redis import Redis

from core.errors import Reason, Rejected
from workers.dead_letters import DELIVERIES_TTL_S, DeadLetter, DeadLetters, Deliveries

ODD_KEYS = ["a b/räin+1%.wav", "雨.wav", 'quo"te\\s.wav', "line\nbreak.wav", "a:b*?[c].wav"]


@pytest.fixture
def letters(redis: Redis) -> DeadLetters:
    """Return an empty set of letters."""
    return DeadLetters(redis)


@pytest.fixture
def deliveries(redis: Redis) -> Deliveries:
    """Return counts that are all zero."""
    return Deliveries(redis)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time in a list: letters are written as fast as the clock ticks."""
    now = [1000.0]
    monkeypatch.setattr("workers.dead_letters.time.time", lambda: now[0])
    return now


def _verdict(detail: str, etag: str = "", reason: Reason = Reason.DAMAGED) -> Rejected:
    verdict = Rejected(reason, detail)
    verdict.etag = etag
    return verdict


def _add(letters: DeadLetters, clock: list[float], *keys: str) -> None:
    for key in keys:
        clock[0] += 1
        letters.add(key, _verdict("cut off"))


@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_letter_says_what_was_judged_and_why(
    letters: DeadLetters, clock: list[float], key: str
) -> None:
    """Key, reason, words, judged state and time come back as they were written."""
    letters.add(key, _verdict('cut "off" — nach 3 s', "e1", Reason.NOT_FINITE))
    expected = DeadLetter(key, Reason.NOT_FINITE, 'cut "off" — nach 3 s', "e1", clock[0])
    assert letters.get([key]) == {key: expected}
    assert letters.latest(10) == [expected]
    assert letters.get([key])[key].reason is Reason.NOT_FINITE


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_can_be_kept(letters: DeadLetters, reason: Reason) -> None:
    """No verdict is lost on the way to Redis and back."""
    letters.add("rain.wav", _verdict("", reason=reason))
    assert letters.get(["rain.wav"])["rain.wav"].reason is reason


def test_the_newest_verdict_wins(letters: DeadLetters, clock: list[float]) -> None:
    """An object has one letter, the last one, and counts once."""
    letters.add("rain.wav", _verdict("first", "e1"))
    clock[0] += 1
    letters.add("rain.wav", _verdict("second", "e2", Reason.SILENT))
    assert letters.count() == 1
    assert letters.latest(10) == [
        DeadLetter("rain.wav", Reason.SILENT, "second", "e2", clock[0]),
    ]


def test_the_latest_come_first(letters: DeadLetters, clock: list[float]) -> None:
    """Letters are shown from the newest on, as many as asked for; a new verdict moves one up."""
    _add(letters, clock, "b", "c", "a")
    assert [letter.key for letter in letters.latest(10)] == ["a", "c", "b"]
    assert [letter.key for letter in letters.latest(2)] == ["a", "c"]
    _add(letters, clock, "b")
    assert [letter.key for letter in letters.latest(2)] == ["b", "a"]


@pytest.mark.parametrize("limit", [0, -1])
def test_no_letters_asked_for_are_none(
    letters: DeadLetters, clock: list[float], limit: int
) -> None:
    """A limit of nothing is not taken for no limit."""
    _add(letters, clock, "a", "b")
    assert letters.latest(limit) == []


def test_clearing_nothing_is_no_error(letters: DeadLetters, clock: list[float]) -> None:
    """Without a name nothing is cleared."""
    _add(letters, clock, "a")
    letters.clear([])
    assert letters.count() == 1


def test_cleared_letters_are_gone(letters: DeadLetters, clock: list[float]) -> None:
    """Clearing takes the named letters, and no others; names without a letter are no error."""
    _add(letters, clock, "a", "b", "c")
    letters.clear(key for key in ("a", "c", "unknown"))
    assert letters.count() == 1
    assert [letter.key for letter in letters.latest(1)] == ["b"]
    assert set(letters.get(["a", "b", "c"])) == {"b"}


def test_only_letters_that_exist_are_got(letters: DeadLetters, clock: list[float]) -> None:
    """Keys without a letter are left out of the answer."""
    _add(letters, clock, "a", "b")
    assert set(letters.get(key for key in ("b", "unknown", "a"))) == {"a", "b"}
    assert letters.get(["unknown"]) == {}
    assert letters.get([]) == {}


def test_no_letters_are_no_error(letters: DeadLetters) -> None:
    """An empty Redis holds none."""
    assert (letters.count(), letters.latest(10)) == (0, [])


def test_letters_outlive_the_process(letters: DeadLetters, redis: Redis) -> None:
    """Another process sees them, and they never expire by themselves."""
    letters.add("rain.wav", _verdict("cut off"))
    assert DeadLetters(redis).count() == 1
    assert [redis.ttl(name) for name in redis.scan_iter()] == [-1, -1]


def test_deliveries_are_counted_by_key(deliveries: Deliveries) -> None:
    """Each begin counts one more for its key alone."""
    assert [deliveries.begin("a.wav") for _ in range(3)] == [1, 2, 3]
    assert deliveries.begin("b.wav") == 1


@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_finished_delivery_is_forgotten(deliveries: Deliveries, redis: Redis, key: str) -> None:
    """Once the work ended, counting starts over and nothing is left in Redis."""
    deliveries.begin(key)
    deliveries.begin(key)
    deliveries.finish(key)
    assert redis.keys() == []
    assert deliveries.begin(key) == 1


def test_finishing_what_never_began_is_no_error(deliveries: Deliveries) -> None:
    """A duplicate may finish the same key twice."""
    deliveries.finish("rain.wav")
    assert deliveries.begin("rain.wav") == 1


def test_a_count_expires_a_day_after_the_last_delivery(
    deliveries: Deliveries, redis: Redis
) -> None:
    """A count is kept long enough for every redelivery, renewed by each, and not for ever."""
    deliveries.begin("rain.wav")
    (name,) = redis.keys()
    assert DELIVERIES_TTL_S - 5 <= redis.ttl(name) <= DELIVERIES_TTL_S
    redis.expire(name, 100)
    assert deliveries.begin("rain.wav") == 2
    assert redis.ttl(name) > 100


def test_counts_and_letters_do_not_meet(letters: DeadLetters, deliveries: Deliveries) -> None:
    """Forgetting a count keeps the letter, and clearing the letter keeps the count."""
    letters.add("rain.wav", _verdict("cut off"))
    deliveries.begin("rain.wav")
    deliveries.finish("rain.wav")
    assert letters.count() == 1
    deliveries.begin("rain.wav")
    letters.clear(["rain.wav"])
    assert deliveries.begin("rain.wav") == 2
