"""A lock whose holders take turns."""

import threading


class FairLock:
    """A lock that is fair: whoever came first goes first.

    With a plain one a thread that always has work would take it again before another wakes up.
    """

    def __init__(self) -> None:
        """Begin with nobody's turn."""
        self._changed = threading.Condition()
        self._tickets = 0
        self._turn = 0

    def __enter__(self) -> None:
        """Wait for one's turn."""
        with self._changed:
            mine, self._tickets = self._tickets, self._tickets + 1
            self._changed.wait_for(lambda: self._turn == mine)

    def __exit__(self, *_: object) -> None:
        """Let the next have its turn."""
        with self._changed:
            self._turn += 1
            self._changed.notify_all()
