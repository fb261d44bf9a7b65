"""Schedules: which of several threads goes on at each call, and which dies, drawn by a seed.

All of them stand still before each call to what they share; so each seed is one interleaving that
can be played again.
"""

import random
import threading
from collections.abc import Callable
from typing import Any

from audiofuse.core.errors import Unavailable

CALLS_AT_MOST = 10_000  # of one schedule; more means that it never rests
HASTES = (1.0, 0.1, 1e-4)
FAULT = 0.01  # how likely a call kills its worker, or fails, before it is done or after
KILLS = 2


class Killed(BaseException):
    """The worker's process is gone."""


class Actor(threading.local):
    """What a thread of a schedule knows of itself."""

    turn: "Turn"


class Turn(threading.Semaphore):
    """What a thread waits for; ``haste`` is how likely it is the next that goes on."""

    haste = 1.0
    stalls = False
    wakes: Callable[[], object] = staticmethod(lambda: True)


class Schedule:
    """Lets one thread go on at a time, to its next call; draws which, and which of them dies.

    Some stand still until most others have nothing to do: that is what finds errors.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kills = KILLS
        self._here = Actor()
        self._paused = threading.Semaphore(0)
        self._ready: list[Turn] = []

    def run(self, *actors: Callable[[], None]) -> None:
        """Run all actors to their ends; raise what any of them raises."""
        errors: list[BaseException] = []
        for actor in actors:
            threading.Thread(target=self._act, args=(actor, errors), daemon=True).start()
            self._paused.acquire()  # one after the other, so that their order is always the same
        for _ in range(CALLS_AT_MOST):
            if errors or not self._ready:
                break
            awake = [turn for turn in self._ready if turn.wakes()]
            (chosen,) = self.random.choices(awake, [turn.haste for turn in awake])
            if chosen.stalls and self.random.random() < 0.2:
                chosen.haste = self.random.choice(HASTES)
            self._ready.remove(chosen)
            chosen.release()
            self._paused.acquire()
        if errors or self._ready:
            raise errors[0] if errors else AssertionError("it never rests")

    def _act(self, actor: Callable[[], None], errors: list[BaseException]) -> None:
        self._here.turn = Turn(0)
        try:
            self.step()
            actor()
        except BaseException as error:  # noqa: BLE001 - raised by ``run``
            errors.append(error)
        self._paused.release()

    def step(self) -> None:
        """Stand still until it is this thread's turn."""
        self._ready.append(self._here.turn)
        self._paused.release()
        self._here.turn.acquire()

    def may_stall(self) -> None:
        """Let this thread stand still now and then."""
        self._here.turn.stalls = True

    def rest(self, until: Callable[[], object]) -> None:
        """Stand still until something is true."""
        self._here.turn.wakes = until
        self.step()
        self._here.turn.wakes = lambda: True

    def may_fail(self) -> None:
        """Die or fail, seldom."""
        if self.kills and self.random.random() < FAULT:
            self.kills -= 1
            raise Killed
        if self.random.random() < FAULT:
            raise Unavailable("it is away")

    def stepped(self, subject: object) -> Any:
        """Return ``subject`` with a stop before each call, at which a worker may also die."""
        return _Stepped(subject, self)


class _Stepped:
    def __init__(self, subject: object, schedule: Schedule) -> None:
        self._subject = subject
        self._schedule = schedule

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._subject, name)
        return self._stop_before(attribute) if callable(attribute) else attribute

    def _stop_before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*arguments: Any, **options: Any) -> Any:
            self._schedule.step()
            self._schedule.may_fail()
            answer = call(*arguments, **options)
            self._schedule.may_fail()
            return answer

        return stopped
