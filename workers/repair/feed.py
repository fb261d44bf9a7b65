"""What differs is handed over never far ahead of the workers, and followed to its end.

A queue that holds a backlog of millions takes Redis's memory and gains nothing: the list of what is
to be done is on disk, in the comparison. Whoever stops half-way stops in peace, because what is
left is found by the next comparison.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from audiofuse.core.settings import Settings
from audiofuse.workers.queue.broker import Dispatcher, create_celery, open_lanes
from audiofuse.workers.telemetry.names import Lane

# Messages that may wait in a lane. More keep the workers busy for longer while this process is
# away; fewer take less of Redis's memory.
AHEAD = 5000
BATCH = 100  # keys that are handed over before the lane is looked at again
FOLLOWED_AT_ONCE = 500  # keys that are asked for at once
POLL_S = 0.5


class LaneFeed:
    """Hands keys over to a lane, and knows how far it and the workers are."""

    def __init__(self, settings: Settings, lane: Lane, ahead: int = AHEAD) -> None:
        """Queue keys in ``lane`` while fewer than ``ahead`` wait there."""
        self._dispatcher = Dispatcher(create_celery(settings))
        self._lanes = open_lanes(settings)
        self._lane = lane
        self._ahead = ahead
        self.queued = 0

    def queue(self, keys: Iterable[str]) -> Iterator[None]:
        """Queue all keys; comes up for air after some, and while it waits for the workers."""
        remaining = iter(keys)
        while True:
            room = self._ahead - self._lanes.waiting(self._lane)
            if room <= 0:
                time.sleep(POLL_S)
            elif batch := list(islice(remaining, min(room, BATCH))):
                for key in batch:
                    self._dispatcher.sync(key, self._lane)
                self.queued += len(batch)
            else:
                return
            yield

    def follow(
        self, keys: Iterable[str], unsettled: Callable[[list[str]], list[str]]
    ) -> Iterator[None]:
        """Return once every key is settled, or once nothing of the lane waits or is worked on.

        ``unsettled`` tells which of some keys are not settled yet. What others put into the lane
        meanwhile is not waited for.
        """
        remaining = iter(keys)
        while following := list(islice(remaining, FOLLOWED_AT_ONCE)):
            while following := unsettled(following):
                if not self._lanes.backlog(self._lane):
                    return
                yield
                time.sleep(POLL_S)

    @property
    def done(self) -> int:
        """How many of the queued keys were worked on, as far as the lane tells."""
        return max(0, self.queued - self._lanes.backlog(self._lane))
