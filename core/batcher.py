"""Questions that many threads ask at the same time, made one call."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from audiofuse.core.errors import AudiofuseError

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class _Asked(Generic[Question, Answer]):
    """A question, the answer to come, and a bell for whoever waits for it."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.answer: Future[Answer] = Future()
        self.bell = threading.Event()


class Batcher(Generic[Question, Answer]):
    """Makes one call of what threads ask for while the call before is under way.

    It has no thread of its own that could die: who asks first leads, and then the next that waits.
    """

    def __init__(
        self,
        call: Callable[[list[Question]], Sequence[Answer]],
        at_most: int,
        away: tuple[type[Exception], ...] = (AudiofuseError,),
        size: Callable[[Question], int] = lambda _: 1,
    ) -> None:
        """Combine questions whose sizes add up to ``at_most``; ``call`` answers them in order.

        A larger one is asked alone. An error that is ``away`` is no single question's fault and is
        raised for all of them.
        """
        self._call = call
        self._away = away
        self._at_most = at_most
        self._size = size
        self._lock = threading.Lock()
        self._waiting: deque[_Asked[Question, Answer]] = deque()
        self._led = False  # false only while nobody waits

    def __call__(self, question: Question) -> Answer:
        """Return the answer to one question, or raise what it alone would raise."""
        mine = _Asked[Question, Answer](question)
        with self._lock:
            self._waiting.append(mine)
            if not self._led:
                self._led = True
                mine.bell.set()
        mine.bell.wait()
        if not mine.answer.done():
            self._lead()
        return mine.answer.result()

    def _lead(self) -> None:
        """Ask for the first that wait, oneself foremost; then let the next one lead."""
        with self._lock:
            together = self._next()
        self._ask(together)
        for asked in together:
            asked.bell.set()
        with self._lock:
            self._led = bool(self._waiting)
            if self._waiting:
                self._waiting[0].bell.set()

    def _next(self) -> list[_Asked[Question, Answer]]:
        """Take the first that wait, as many as may be asked together."""
        together = [self._waiting.popleft()]
        size = self._size(together[0].question)
        while self._waiting:
            size += self._size(self._waiting[0].question)
            if size > self._at_most:
                break
            together.append(self._waiting.popleft())
        return together

    def _ask(self, together: Sequence[_Asked[Question, Answer]]) -> None:
        try:
            answers = self._call([asked.question for asked in together])
        except Exception as error:  # noqa: BLE001 - it is raised where the question came from
            self._refuse(together, error)
        else:
            for asked, answer in zip(together, answers, strict=True):
                asked.answer.set_result(answer)

    def _refuse(self, together: Sequence[_Asked[Question, Answer]], error: Exception) -> None:
        """Give everybody the error, unless one may be at fault: then ask for each alone."""
        if len(together) == 1 or isinstance(error, self._away):
            for asked in together:
                asked.answer.set_exception(error)
        else:
            for asked in together:
                self._ask([asked])
