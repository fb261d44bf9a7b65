"""A bounded amount of something that many threads share."""

import threading


class Budget:
    """Lets threads take from a bounded amount of something, and wait while too much is taken."""

    def __init__(self, amount: float) -> None:
        """Bound what is taken at once to ``amount``."""
        self._amount = amount
        self._taken = 0.0
        self._waiting = 0
        self._changed = threading.Condition()

    @property
    def exhausted(self) -> bool:
        """Whether somebody waits for more."""
        return self._waiting > 0

    def take(self, amount: float) -> None:
        """Take, as soon as that fits; what is larger than the whole is taken alone."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._taken or self._fits(amount))
            self._waiting -= 1
            self._taken += amount

    def give_back(self, amount: float) -> None:
        """Let others have what was taken."""
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()

    def _fits(self, amount: float) -> bool:
        return self._taken + amount <= self._amount
