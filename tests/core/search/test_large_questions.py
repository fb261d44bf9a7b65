"""Questions for many hits: they cost time, but nobody else's."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from audiofuse.core.index.index import Generation, Health, Nearest, Point
from audiofuse.core.query import MAX_LIMIT, Filter, Question
from audiofuse.core.search.answering import TOGETHER
from audiofuse.core.search.search import Searcher

LIVE = Generation("c", "v")


class SlowIndex:
    """An index that answers large questions when it is allowed to."""

    def __init__(self) -> None:
        self.allowed, self.begun = threading.Event(), threading.Semaphore(0)
        self.large = 0  # under way

    def live(self) -> Generation:
        """Tell what is live."""
        return LIVE

    def bounded(self, where: Filter) -> Filter:
        """Let everything be seen."""
        return where

    def health(self, _: Generation) -> Health:
        """Tell that there are no moments."""
        return Health(points=0, indexed=0, status="green", optimised=True)

    def search(self, _: Generation, asked: Sequence[Nearest]) -> list[list[Point]]:
        """Find nothing, at once or later."""
        if any(each.limit > TOGETHER for each in asked):
            self.large += 1
            self.begun.release()
            assert self.allowed.wait(30)
            time.sleep(0.002)  # long enough to be met by another, if another may come
            assert self.large == 1
            self.large -= 1
        return [[] for _ in asked]


class Tower:
    """One tower for every version, and the text of all questions."""

    relevance = None

    def get(self, _: str) -> "Tower":
        """Return it."""
        return self

    def encode_text(self, _: str) -> np.ndarray:
        """Return a vector."""
        return np.ones(4, np.float32)

    def explained(self, points: Sequence[Point], _: np.ndarray) -> Sequence[Point]:
        """Explain nothing."""
        return points


@pytest.fixture
def index() -> SlowIndex:
    """Return an index that holds large questions up."""
    return SlowIndex()


@pytest.fixture
def searcher(index: Any) -> Searcher:
    """Return a searcher over it."""
    towers: Any = Tower()
    return Searcher(index, towers)


def test_a_large_question_holds_up_no_small_one(index: SlowIndex, searcher: Searcher) -> None:
    """While somebody waits for a thousand hits, others are answered; then so is he."""
    with ThreadPoolExecutor(2) as threads:
        large = threads.submit(searcher.search, Question("rain", limit=MAX_LIMIT))
        assert index.begun.acquire(timeout=30)
        small = threads.submit(searcher.search, Question("rain", limit=TOGETHER))
        try:
            assert small.result(20).encoder == "v"
            assert not large.done()
        finally:
            index.allowed.set()
        assert large.result(20).encoder == "v"


def test_large_questions_are_answered_one_after_the_other(
    index: SlowIndex, searcher: Searcher
) -> None:
    """Never are two large answers in memory at once."""
    index.allowed.set()
    question = Question("rain", limit=MAX_LIMIT)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(searcher.search, [question] * 24))
    assert [each.encoder for each in found] == ["v"] * 24
