"""Dead letters and delivery counts, in a real Valkey."""

import pytest
from redis import Redis

from audiofuse.core.errors import Reason, Rejected
from audiofuse.workers.queue.dead_letters import (
    DeadLetter,
    DeadLetters,
)

ODD_KEYS = ["a b/räin+1%.wav", "雨.wav", 'quo"te\\s.wav', "line\nbreak.wav", "a:b*?[c].wav"]


@pytest.fixture
def letters(redis: Redis) -> DeadLetters:
    """Return an empty set of letters."""
    return DeadLetters(redis, "audiofuse", "tiny-000000")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the time in a list: letters are written as fast as the clock ticks."""
    now = [1000.0]
    monkeypatch.setattr("audiofuse.workers.queue.dead_letters.time.time", lambda: now[0])
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
    """Key, reason, words, judged state, judge and time come back as they were written."""
    letters.add(key, _verdict('cut "off" — nach 3 s', "e1", Reason.NOT_FINITE))
    expected = DeadLetter(
        key, Reason.NOT_FINITE, 'cut "off" — nach 3 s', "e1", "tiny-000000", clock[0], 1
    )
    assert letters.get([key]) == {key: expected}
    assert letters.latest(10) == [expected]
    assert letters.get([key])[key].reason is Reason.NOT_FINITE


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_can_be_kept(letters: DeadLetters, reason: Reason) -> None:
    """No verdict is lost on the way to Redis and back."""
    letters.add("rain.wav", _verdict("", reason=reason))
    assert letters.get(["rain.wav"])["rain.wav"].reason is reason


def test_the_newest_verdict_wins(letters: DeadLetters, clock: list[float]) -> None:
    """An object has one letter, the last one, which says how many verdicts there were."""
    letters.add("rain.wav", _verdict("first", "e1"))
    clock[0] += 1
    letters.add("rain.wav", _verdict("second", "e2", Reason.SILENT))
    assert letters.count() == 1
    assert letters.latest(10) == [
        DeadLetter("rain.wav", Reason.SILENT, "second", "e2", "tiny-000000", clock[0], 2),
    ]
    assert letters.reasons() == {Reason.SILENT: 1}
    letters.clear(["rain.wav"])
    letters.add("rain.wav", _verdict("third"))
    assert letters.get(["rain.wav"])["rain.wav"].count == 1  # it was well in between


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
    assert (letters.count(), letters.latest(10), letters.reasons()) == (0, [], {})
    assert list(letters.keys()) == []


def test_letters_outlive_the_process(letters: DeadLetters, redis: Redis) -> None:
    """Another process sees them, and they never expire by themselves."""
    letters.add("rain.wav", _verdict("cut off"))
    assert DeadLetters(redis, "audiofuse").latest(1) == letters.latest(1)
    assert {redis.ttl(name) for name in redis.scan_iter()} == {-1}


def test_indexes_do_not_mix(letters: DeadLetters, redis: Redis) -> None:
    """Two indexes may share a Redis, and the names of their objects, also those of one bucket."""
    other = DeadLetters(redis, "audiofuse-2")
    letters.add("rain.wav", _verdict("cut off"))
    assert (other.count(), list(other.keys()), other.reasons()) == (0, [], {})
    other.add("rain.wav", _verdict("other"))
    other.clear(["rain.wav"])
    assert letters.get(["rain.wav"])["rain.wav"].detail == "cut off"


def test_letters_are_counted_by_reason(letters: DeadLetters, clock: list[float]) -> None:
    """Each letter counts for its present reason, cleared ones for none."""
    _add(letters, clock, "a", "b", "c")
    letters.add("c", _verdict("", reason=Reason.BUG))
    assert letters.reasons() == {Reason.DAMAGED: 2, Reason.BUG: 1}
    letters.clear(["a", "c"])
    assert letters.reasons() == {Reason.DAMAGED: 1}


def test_keys_are_chosen_by_reason_prefix_and_age(letters: DeadLetters, clock: list[float]) -> None:
    """Whatever is not asked for is left out; the rest comes newest first."""
    _add(letters, clock, "x/1", "y/2")  # at 1001 and 1002
    letters.add("x/3", _verdict("", reason=Reason.SILENT))
    _add(letters, clock, "x/4")
    assert list(letters.keys()) == ["x/4", "y/2", "x/3", "x/1"]
    assert list(letters.keys(Reason.SILENT)) == ["x/3"]
    assert list(letters.keys(Reason.BUG)) == []
    assert list(letters.keys(prefix="x/")) == ["x/4", "x/3", "x/1"]
    assert list(letters.keys(before=1001.5)) == ["x/1"]
    assert list(letters.keys(Reason.DAMAGED, "x", 1002.5)) == ["x/1"]


@pytest.mark.parametrize("ticks", [True, False])
def test_a_walk_is_not_disturbed_by_what_it_does(
    letters: DeadLetters, clock: list[float], monkeypatch: pytest.MonkeyPatch, *, ticks: bool
) -> None:
    """Many pages are walked, each key met once, while letters go, and come back with a new time."""
    monkeypatch.setattr("audiofuse.workers.queue.dead_letters.PAGE", 7)
    names = [f"{number:03}" for number in range(60)]
    for name in names:
        clock[0] += ticks
        letters.add(name, _verdict("", reason=list(Reason)[int(name) % 2]))
    clock[0] += 1
    met = []
    for number, key in enumerate(letters.keys()):
        met.append(key)
        letters.clear([key])
        if number % 3 == 0:
            letters.add(key, _verdict("again"))
    assert sorted(met) == names
    assert letters.count() == 20
