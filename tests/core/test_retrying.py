"""What is away is tried again, ever more seldom, until it is back."""

import logging

import pytest

from audiofuse.core.errors import Rejected, Unavailable
from audiofuse.core.retrying import BackOff, retry, warn


class Flaky:
    """Raises what it is given, one after the other, and then returns."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    def __call__(self) -> str:
        """Fail or succeed."""
        if self._errors:
            raise self._errors.pop(0)
        return "done"


def test_each_wait_is_twice_as_long_up_to_the_longest() -> None:
    """What fails is tried until it succeeds, and its result is returned."""
    waited: list[float] = []
    told: list[tuple[str, float]] = []
    done = retry(
        Flaky(*(Unavailable(str(number)) for number in range(4))), (Unavailable,), BackOff(1, 4),
        lambda error, pause_s: told.append((str(error), pause_s)), waited.append,
    )  # fmt: skip
    assert done == "done"
    assert waited == [1, 2, 4, 4]
    assert told == [("0", 1), ("1", 2), ("2", 4), ("3", 4)]


def test_what_is_not_away_is_raised() -> None:
    """Another error than those that are named is nobody's to retry."""
    work = Flaky(Unavailable("away"), ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        retry(work, (Unavailable, Rejected), BackOff(1, 1), lambda *_: None, lambda _: None)


def test_a_warning_says_what_waits_for_how_long_and_why(caplog: pytest.LogCaptureFixture) -> None:
    """The log names the work, the pause and the error."""
    warn(logging.getLogger("test"), "the intake pauses")(Unavailable("no broker"), 5)
    assert caplog.messages == ["the intake pauses; again in 5 s: no broker"]
