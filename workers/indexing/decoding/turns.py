"""Who may use which decoding process next: a window at a time, short live sounds first.

Whoever has had the fewest windows goes first, live ones before others. So a short sound waits for
the window that is being decoded at most, however many long ones are open, and even if there is one
process only. Every so many turns the one that has waited longest goes first, so that no sound
waits for ever.
"""

import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from audiofuse.core.errors import Unavailable

LONGEST_WAIT_FIRST = 10  # every so many turns. Higher: long and backfill sounds wait for longer
TURN_S = 600.0  # a turn that takes longer to come is an outage. Higher: it is told later

Process = TypeVar("Process")


@dataclass(eq=False)
class _Request(Generic[Process]):
    """A thread that waits for a process: for ``wanted``, which has its sound open, or for any."""

    wanted: Process | None
    urgent: bool
    windows: int  # that its sound has had
    turn: "Future[Process]" = field(default_factory=Future)

    @property
    def rank(self) -> tuple[bool, int]:
        return not self.urgent, self.windows


class Turns(Generic[Process]):
    """Lends processes to threads; knows nothing of what they do with them."""

    def __init__(self) -> None:
        """Begin without a process."""
        self._lock = threading.Lock()
        self._idle: set[Process] = set()
        self._all: set[Process] = set()
        self._sounds = Counter[Process]()  # that each process has open
        self._waiting: list[_Request[Process]] = []  # in the order in which they came
        self._given = 0
        self._closed = ""

    def processes(self) -> set[Process]:
        """Return all there are."""
        with self._lock:
            return set(self._all)

    def idle(self) -> set[Process]:
        """Return those that nobody uses."""
        with self._lock:
            return set(self._idle)

    def waiting(self) -> int:
        """Return how many threads wait for a turn."""
        with self._lock:
            return len(self._waiting)

    def take(
        self,
        wanted: Process | None = None,
        *,
        urgent: bool = True,
        windows: int = 0,
        patience_s: float = TURN_S,
    ) -> Process:
        """Wait for a turn with ``wanted``, or with any process, which then counts a sound more.

        Raises ``Unavailable`` if ``wanted`` is no more, if there is no turn for ``patience_s``, or
        once closed.
        """
        mine = _Request(wanted, urgent, windows)
        with self._lock:
            if self._closed:
                raise Unavailable(self._closed)
            if wanted is not None and wanted not in self._all:
                raise _lost()
            self._waiting.append(mine)
            for process in self._preferred(wanted):
                self._serve(process)
        try:
            return mine.turn.result(patience_s)
        except TimeoutError:
            with self._lock:
                if mine.turn.done():  # at the last moment
                    return mine.turn.result()
                self._waiting.remove(mine)
            raise Unavailable(f"no decoding process was free for {patience_s:.0f} s") from None

    def give_back(self, process: Process) -> bool:
        """Let the next have the process; false once closed: then it stays with who had it."""
        with self._lock:
            if not self._closed:
                self._idle.add(process)
                self._serve(process)
            return not self._closed

    def ended(self, process: Process) -> None:
        """Note that a process has one sound less open."""
        with self._lock:
            if process in self._all:
                self._sounds[process] -= 1

    def add(self, process: Process) -> None:
        """Lend one process more."""
        with self._lock:
            if self._closed:
                raise Unavailable(self._closed)
            self._all.add(process)
            self._idle.add(process)
            self._serve(process)

    def remove(self, process: Process) -> None:
        """Lend a process no more; who waits for it gets ``Unavailable``."""
        with self._lock:
            self._all.discard(process)
            self._idle.discard(process)
            del self._sounds[process]
            for each in [each for each in self._waiting if each.wanted is process]:
                self._waiting.remove(each)
                each.turn.set_exception(_lost())

    def refuse(self, why: str) -> None:
        """Raise ``Unavailable`` where threads wait for a process, if there is none at all."""
        with self._lock:
            if not self._all:
                self._refuse_all(why)

    def close(self, why: str) -> set[Process]:
        """Raise ``Unavailable`` where threads wait, and from now on; return the idle processes."""
        with self._lock:
            self._closed = why
            self._refuse_all(why)
            return self._idle

    def _refuse_all(self, why: str) -> None:
        for each in self._waiting:
            each.turn.set_exception(Unavailable(why))
        self._waiting.clear()

    def _preferred(self, wanted: Process | None) -> list[Process]:
        """Return the idle process that a new request may have: of any, that with fewest sounds."""
        if wanted is not None:
            return [wanted] if wanted in self._idle else []
        return sorted(self._idle, key=self._sounds.__getitem__)[:1]

    def _serve(self, process: Process) -> None:
        """Give an idle process to whoever is next, if anybody waits for it."""
        fitting = [each for each in self._waiting if each.wanted in {None, process}]
        if not fitting:
            return
        self._given += 1
        oldest_first = self._given % LONGEST_WAIT_FIRST == 0
        chosen = fitting[0] if oldest_first else min(fitting, key=lambda each: each.rank)
        self._waiting.remove(chosen)
        self._idle.discard(process)
        self._sounds[process] += chosen.wanted is None
        chosen.turn.set_result(process)


def _lost() -> Unavailable:
    return Unavailable("its decoding process ended with another sound")
