"""Which sounds a device's process died of: found by giving them no company."""

import threading
from collections import Counter
from collections.abc import Iterable

from audiofuse.core.errors import Reason, Rejected

MAX_DEATHS = 3  # raised, a sound that kills the device stops the others that much longer


class Suspects:
    """Counts, by key, the deaths of a device that was at work on it.

    All that shared the first death's batch are suspects. Each of them is then encoded alone, so
    that what the others are counted for is at most that one.
    """

    def __init__(self) -> None:
        """Suspect nobody."""
        self._lock = threading.Lock()
        self._deaths = Counter[str]()

    def died_of(self, keys: Iterable[str]) -> None:
        """Count that the device ended while it worked on these."""
        with self._lock:
            self._deaths.update(set(keys))

    def is_one(self, key: str) -> bool:
        """Whether a key must be encoded alone. Raises ``Rejected`` if it was too often already."""
        with self._lock:
            deaths = self._deaths[key]
            if deaths >= MAX_DEATHS:
                del self._deaths[key]
                detail = f"the device's process ended {MAX_DEATHS} times while encoding it"
                raise Rejected(Reason.CRASHED, detail)
            return deaths > 0

    def clear(self, key: str) -> None:
        """Forget what was encoded after all."""
        with self._lock:
            self._deaths.pop(key, None)
