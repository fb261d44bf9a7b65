"""A bounded amount that threads share: in order, and nothing waits for ever."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from audiofuse.workers.indexing.device.fair_lock import FairLock
from audiofuse.workers.indexing.stages import Budget

Eventually = Callable[..., Any]


def test_a_large_one_is_not_overtaken(eventually: Eventually) -> None:
    """While a large amount waits, small ones that came later wait behind it, though they fit."""
    budget, order = Budget(10), []

    def take(amount: float) -> None:
        budget.take(amount)
        order.append(amount)

    budget.take(5)
    with ThreadPoolExecutor(4) as threads:
        for number, amount in enumerate((9, 1, 0.5)):
            threads.submit(take, amount)
            eventually(lambda number=number: len(budget._line) == number + 1)
        assert order == []
        budget.give_back(5)
        eventually(lambda: set(order) == {9, 1})
        assert order[0] == 9
        budget.give_back(9)
    assert order == [9, 1, 0.5]


def test_more_than_there_is_is_taken_alone() -> None:
    """An amount beyond the whole is taken once nothing else is."""
    budget = Budget(1)
    budget.take(5)
    budget.give_back(5)
    budget.take(1)


def test_turns_are_taken_in_order(eventually: Callable[..., Any]) -> None:
    """Whoever came first goes first, however many wait."""
    turn, order = FairLock(), []

    def take(number: int) -> None:
        with turn:
            order.append(number)

    with ThreadPoolExecutor(8) as threads, turn:
        for number in range(8):
            threads.submit(take, number)
            eventually(lambda number=number: turn._tickets == number + 2)
        assert order == []
    assert order == list(range(8))
