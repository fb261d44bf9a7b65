"""A bounded amount of something that many threads share, in the order in which they came."""

import threading
from collections import deque


class Budget:
    """Lets threads take from a bounded amount of something, and wait while too much is taken.

    Whoever came first takes first: what is large is not overtaken for ever by what is small.
    """

    def __init__(self, amount: float) -> None:
        """Bound what is taken at once to ``amount``, in any unit."""
        self._amount = amount
        self._taken = 0.0
        self._line: deque[object] = deque()  # a ticket for each thread that waits
        self._changed = threading.Condition()

    @property
    def exhausted(self) -> bool:
        """Whether somebody waits for more."""
        return bool(self._line)

    def take(self, amount: float) -> None:
        """Take in one's turn, as soon as it fits; what exceeds the whole is taken alone."""
        ticket = object()
        with self._changed:
            self._line.append(ticket)
            self._changed.wait_for(lambda: self._line[0] is ticket and self._fits(amount))
            self._line.popleft()
            self._taken += amount
            self._changed.notify_all()  # the next may fit as well

    def give_back(self, amount: float) -> None:
        """Let others have what was taken."""
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()

    def _fits(self, amount: float) -> bool:
        return not self._taken or self._taken + amount <= self._amount
