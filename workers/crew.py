"""The crew: one thread for each message in hand, so that a message's way is a plain function."""

import logging
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from workers.broker import Lane

log = logging.getLogger(__name__)

BROKEN = 70  # exit code for an internal error: EX_SOFTWARE


def vital_thread(name: str, run: Callable[[], None]) -> threading.Thread:
    """Start a thread without which nothing here can go on: if it dies the process does.

    A worker that has lost a stage must not look alive. What it holds is delivered again.
    """

    def run_or_end() -> None:
        try:
            run()
        except BaseException:
            log.critical("the thread %s died, and the worker with it", name, exc_info=True)
            end_process()

    thread = threading.Thread(target=run_or_end, name=name, daemon=True)
    thread.start()
    return thread


def end_process() -> NoReturn:
    """End at once, with an exit code that says that this was no orderly end."""
    logging.shutdown()
    os._exit(BROKEN)


@dataclass(frozen=True, eq=False)
class Held:
    """A message in hand: the key it names, its lane, and the broker's ``receipt`` for it."""

    key: str
    lane: Lane
    receipt: Any


@dataclass(frozen=True)
class Finished:
    """A message that nobody works on any more, and whether it may be acknowledged."""

    held: Held
    settled: bool


class Crew:
    """Threads that settle messages."""

    def __init__(
        self, size: int, settle: Callable[[str, Lane], bool], report: Callable[[], None]
    ) -> None:
        """Let ``size`` threads ``settle``; ``report`` is called when something has finished."""
        self._settle = settle
        self._report = report
        self._waiting: queue.SimpleQueue[Held] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._held: set[Held] = set()  # changed by atomic calls only
        for number in range(size):
            vital_thread(f"message-{number}", self._run)

    @property
    def held(self) -> frozenset[Held]:
        """What is in hand: taken, and not reported as finished."""
        return frozenset(self._held.copy())

    def in_hand(self) -> int:
        """Return how many messages are in hand."""
        return len(self._held)

    def take(self, held: Held) -> None:
        """Take a message in hand; never blocks."""
        self._held.add(held)
        self._waiting.put(held)

    def finished(self, patience_s: float = 0.0) -> list[Finished]:
        """Return what has finished since the last call; wait for the first of them if told to."""
        found: list[Finished] = []
        try:
            found.append(self._finished.get(timeout=patience_s) if patience_s else self._next())
            while True:
                found.append(self._next())
        except queue.Empty:
            return found

    def _next(self) -> Finished:
        return self._finished.get_nowait()

    def _run(self) -> None:
        while True:
            held = self._waiting.get()
            settled = self._settle(held.key, held.lane)
            self._held.remove(held)
            self._finished.put(Finished(held, settled))
            self._report()
