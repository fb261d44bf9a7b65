"""Who may use which decoding process next: short live sounds first, and none waits for ever."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from audiofuse.core.errors import Unavailable
from audiofuse.workers.indexing.decoding.turns import LONGEST_WAIT_FIRST, Turns

Eventually = Callable[..., Any]


class Line:
    """Threads that wait for turns, and the order in which they got them."""

    def __init__(self, eventually: Eventually) -> None:
        self.turns = Turns[str]()
        self.order: list[str] = []
        self._eventually = eventually
        self._threads = ThreadPoolExecutor(64)

    def wait(self, name: str, wanted: str | None = None, **options: Any) -> "Future[None]":
        """Have a thread wait in line."""
        before = self.turns.waiting()
        waiting = self._threads.submit(self._wait, name, wanted, options)
        self._eventually(lambda: self.turns.waiting() == before + 1)
        return waiting

    def _wait(self, name: str, wanted: str | None, options: dict[str, Any]) -> None:
        self.turns.take(wanted, **options)
        self.order.append(name)

    def serve(self, process: str, times: int) -> None:
        """Give so many turns with a process, one after the other."""
        for _ in range(times):
            before = len(self.order)
            self.turns.give_back(process)
            self._eventually(lambda before=before: len(self.order) == before + 1)


@pytest.fixture
def line(eventually: Eventually) -> Iterator[Line]:
    """Return a line for the process "a", which somebody uses."""
    made = Line(eventually)
    made.turns.add("a")
    assert made.turns.take() == "a"
    yield made
    made.turns.close("the test ended")  # else who still waits keeps Python from ending


def test_fewest_windows_first_and_live_before_others(line: Line) -> None:
    """A new live sound passes a long live one, and that passes backfill."""
    for name, urgent, windows in (
        ("backfill", False, 0), ("long", True, 9), ("short", True, 0), ("middle", True, 1),
    ):  # fmt: skip
        line.wait(name, urgent=urgent, windows=windows)
    line.serve("a", 4)
    assert line.order == ["short", "middle", "long", "backfill"]


def test_what_waits_longest_is_served_now_and_then(line: Line) -> None:
    """However many short live sounds come, a long one of the backfill lane gets on."""
    line.wait("backfill", urgent=False, windows=99)
    for number in range(LONGEST_WAIT_FIRST):
        line.wait(f"live {number}")
    line.serve("a", LONGEST_WAIT_FIRST)
    assert line.order.count("backfill") == 1


def test_a_new_sound_goes_where_fewest_are_open() -> None:
    """Sounds spread over the processes; one that is open stays where it is."""
    turns = Turns[str]()
    for process in ("a", "b"):
        turns.add(process)
    first = turns.take()
    turns.give_back(first)
    second = turns.take()
    assert {first, second} == {"a", "b"}
    turns.give_back(second)
    assert turns.take(first) == first


def test_who_waits_for_a_process_that_is_lost_is_told(line: Line) -> None:
    """Its sound is gone with it; others wait for the next process."""
    bound = line.wait("bound", "a")
    free = line.wait("free")
    line.turns.remove("a")
    with pytest.raises(Unavailable, match="another sound"):
        bound.result(30)
    with pytest.raises(Unavailable, match="another sound"):
        line.turns.take("a")
    line.turns.add("b")
    free.result(30)


def test_who_waits_in_vain_is_told(line: Line) -> None:
    """After its patience a thread goes on, and its place in the line is free."""
    with pytest.raises(Unavailable, match="no decoding process was free"):
        line.turns.take(patience_s=0.01)
    assert line.turns.waiting() == 0


def test_without_any_process_waiting_ends(line: Line) -> None:
    """Only when there is none at all are those who wait refused."""
    waiting = line.wait("sound")
    line.turns.refuse("no process")
    assert not waiting.done()
    line.turns.remove("a")
    line.turns.refuse("no process")
    with pytest.raises(Unavailable, match="no process"):
        waiting.result(30)


def test_closing_ends_waiting_for_good(line: Line) -> None:
    """Whoever waits, and whoever comes later, is told why; a process stays with who has it."""
    waiting = line.wait("sound")
    line.turns.add("b")
    waiting.result(30)
    waiting = line.wait("another")
    assert line.turns.close("the worker stops") == set()
    for ask in (lambda: waiting.result(30), line.turns.take, lambda: line.turns.add("c")):
        with pytest.raises(Unavailable, match="the worker stops"):
            ask()
    assert not line.turns.give_back("a")
