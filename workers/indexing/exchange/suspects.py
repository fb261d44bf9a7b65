"""Which sounds a device's process died of: found by giving them no company."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from audiofuse.core.errors import Reason, Rejected

MAX_DEATHS = 3  # raised, a sound that kills the device stops the others that much longer
# Seconds for which a verdict stands: what waited for the device is worked on once more after it.
# Raised, who tries again by hand is refused for longer; lowered, the device may die ever again.
STANDS_S = 60.0


@dataclass
class Deaths:
    """How often a device ended while it was at work on one sound, and when last."""

    count: int = 0
    last: float = 0.0


class Suspects:
    """Counts, by sound, the deaths of a device that was at work on it.

    All that shared the first death's batch are suspects. Each of them is then encoded alone, so
    that what the others are counted for is at most that one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Suspect nobody."""
        self._clock = clock
        self._lock = threading.Lock()
        self._deaths: dict[str, Deaths] = {}

    def died_of(self, sounds: Iterable[str]) -> None:
        """Count that the device ended while it worked on these."""
        with self._lock:
            for sound in set(sounds):
                deaths = self._deaths.setdefault(sound, Deaths())
                deaths.count += 1
                deaths.last = self._clock()

    def is_one(self, sound: str) -> bool:
        """Whether a sound must be encoded alone. Raises ``Rejected`` if that was so too often."""
        with self._lock:
            self._forget()
            deaths = self._deaths.get(sound)
        if deaths and deaths.count >= MAX_DEATHS:
            detail = f"the device's process ended {MAX_DEATHS} times while encoding it"
            raise Rejected(Reason.CRASHED, detail)
        return deaths is not None

    def clear(self, sound: str) -> None:
        """Forget what was encoded after all."""
        with self._lock:
            self._deaths.pop(sound, None)

    def _forget(self) -> None:
        """Forget the verdicts that stand no more."""
        now = self._clock()
        self._deaths = {
            sound: deaths
            for sound, deaths in self._deaths.items()
            if deaths.count < MAX_DEATHS or now - deaths.last < STANDS_S
        }
