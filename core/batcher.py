"""Questions that many threads ask at the same time, made one call."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, cast

from audiofuse.core.errors import AudiofuseError, Unavailable

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class _Asked(Generic[Question, Answer]):
    """A question, what came of it, and a bell for whoever waits for it.

    The bell is a bare lock, held until it is rung, once at the most: a future and an event are four
    objects with locks of their own, which cost more than all the rest of a question.
    """

    __slots__ = ("answer", "bell", "error", "question", "settled")

    def __init__(self, question: Question) -> None:
        self.question = question
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.settled = False
        self.bell = threading.Lock()
        self.bell.acquire()

    def answered(self, answer: Answer) -> None:
        """Note the answer."""
        self.answer, self.settled = answer, True

    def failed(self, error: BaseException) -> None:
        """Note what is raised instead."""
        self.error, self.settled = error, True


class Batcher(Generic[Question, Answer]):
    """Makes one call of what threads ask for while the call before is under way.

    It has no thread of its own that could die: who asks first leads, and then the next that waits.
    """

    def __init__(
        self,
        call: Callable[[list[Question]], Sequence[Answer]],
        at_most: int,
        away: tuple[type[Exception], ...] = (AudiofuseError,),
    ) -> None:
        """Combine up to ``at_most`` questions; ``call`` answers them in their order.

        An error that is ``away`` is no single question's fault and is raised for all of them.
        """
        self._call = call
        self._away = away
        self._at_most = at_most
        self._lock = threading.Lock()
        self._waiting: deque[_Asked[Question, Answer]] = deque()
        self._led = False  # false only while nobody waits

    def __call__(self, question: Question) -> Answer:
        """Return the answer to one question, or raise what it alone would raise.

        Raises ``Unavailable`` if the thread that asked for it among others was ended meanwhile.
        """
        mine: _Asked[Question, Answer] = _Asked(question)
        with self._lock:
            self._waiting.append(mine)
            others_lead, self._led = self._led, True
        if others_lead:
            mine.bell.acquire()
        if not mine.settled:
            self._lead(mine)
        if mine.error:
            try:
                raise mine.error
            finally:
                del mine  # the error's traceback holds this frame
        return cast("Answer", mine.answer)

    def _lead(self, mine: _Asked[Question, Answer]) -> None:
        """Ask for the first that wait, oneself foremost; then let the next one lead.

        Nobody is left waiting, even if this thread is being ended amid the call.
        """
        with self._lock:
            count = min(len(self._waiting), self._at_most)
            together = [self._waiting.popleft() for _ in range(count)]
        try:
            self._ask(together)
        except BaseException as error:
            for asked in together:
                if not asked.settled:
                    asked.failed(Unavailable(f"who asked for it was ended: {error!r}"))
            raise
        finally:
            for asked in together:
                if asked is not mine:
                    asked.bell.release()
            with self._lock:
                self._led = bool(self._waiting)
                if self._waiting:
                    self._waiting[0].bell.release()

    def _ask(self, together: Sequence[_Asked[Question, Answer]]) -> None:
        try:
            answers = self._call([asked.question for asked in together])
            pairs = list(zip(together, answers, strict=True))
        except Exception as error:  # noqa: BLE001 - it is raised where the question came from
            self._refuse(together, error)
        else:
            for asked, answer in pairs:
                asked.answered(answer)

    def _refuse(self, together: Sequence[_Asked[Question, Answer]], error: Exception) -> None:
        """Give everybody the error, unless one may be at fault: then ask for each alone."""
        if len(together) == 1 or isinstance(error, self._away):
            for asked in together:
                asked.failed(error)
        else:
            for asked in together:
                self._ask([asked])
