"""One ask of the device: how a thread takes what is cut, and learns that it is all."""

import threading

import pytest

from audiofuse.core.errors import Unavailable
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.windows import Cutting
from audiofuse.workers.indexing.exchange.ask import Ask, take_cut


@pytest.mark.timeout(10)
def test_an_answer_that_came_early_is_waited_for_no_longer() -> None:
    """A look that finds a sound answered already leaves its end to the wait that follows."""
    ask = Ask(0, "early.wav", None, threading.Semaphore(), is_cut=True)
    cutting = Cutting(Grid(5.0, 5.0), lambda _: None)
    ask.answer.set_exception(Unavailable("it was quicker than who asked"))
    take_cut(ask, cutting, wait=False)
    take_cut(ask, cutting, wait=True)
