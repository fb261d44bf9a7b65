"""What many threads ask becomes one call, and nobody is left waiting."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from audiofuse.core.batcher import Batcher
from audiofuse.core.errors import Unavailable

Eventually = Callable[..., Any]


def _ask_behind_a_gate(call: Callable[[Sequence[int]], list[int]], eventually: Eventually) -> Any:
    """Ask 0 alone, and while that is under way 1, 2 and 3; return the four futures."""
    gate, begun = threading.Event(), threading.Event()

    def gated(questions: Sequence[int]) -> list[int]:
        if list(questions) == [0]:
            begun.set()
            gate.wait(30)
            return [0]
        return call(questions)

    batcher = Batcher(gated, 3)
    with ThreadPoolExecutor(8) as threads:
        answers = [threads.submit(batcher, 0)]
        assert begun.wait(30)
        for number in (1, 2, 3):
            answers.append(threads.submit(batcher, number))
            eventually(lambda number=number: len(batcher._waiting) == number)
        gate.set()
    return batcher, answers


def test_a_leader_that_is_ended_leaves_nobody_waiting(eventually: Eventually) -> None:
    """Those it asked for are told, and the next question is answered as ever."""
    ended = [False]

    def end_once(questions: Sequence[int]) -> list[int]:
        if not ended[0]:
            ended[0] = True
            raise SystemExit
        return [-each for each in questions]

    batcher, answers = _ask_behind_a_gate(end_once, eventually)
    assert answers[0].result() == 0
    assert isinstance(answers[1].exception(), SystemExit)
    for answer in answers[2:]:
        with pytest.raises(Unavailable):
            answer.result()
    assert batcher(5) == -5


def test_too_few_answers_are_an_error_for_each(eventually: Eventually) -> None:
    """A call that answers not all leaves nobody with another's answer, nor without one."""
    _, answers = _ask_behind_a_gate(lambda questions: [7] * (len(questions) - 1), eventually)
    for answer in answers[1:]:
        with pytest.raises(ValueError, match="argument"):
            answer.result()


def test_each_gets_its_own_answer(eventually: Eventually) -> None:
    """Questions asked together are answered each by itself."""
    calls: list[int] = []

    def negate(questions: Sequence[int]) -> list[int]:
        calls.append(len(questions))
        return [-each for each in questions]

    _, answers = _ask_behind_a_gate(negate, eventually)
    assert [answer.result() for answer in answers] == [0, -1, -2, -3]
    assert calls == [3]
