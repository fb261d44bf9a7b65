"""Backfill: hand over what differs, never far ahead of the workers, and follow it to its end.

A queue that holds a backlog of millions takes Redis's memory and gains nothing: the list of what is
to be done is on disk, in the comparison. Whoever stops half-way stops in peace, because what is
left is found by the next comparison.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NoReturn

from redis import RedisError

from audiofuse.core.errors import Unavailable
from audiofuse.core.settings import Settings
from audiofuse.workers.queue.broker import Dispatcher, create_celery, open_lanes
from audiofuse.workers.repair.reconcile import Run, Track, open_comparison, unseen
from audiofuse.workers.telemetry.metrics import RECONCILE_FAILURES
from audiofuse.workers.telemetry.names import Lane

log = logging.getLogger(__name__)

AHEAD = 5000  # messages that may wait in a lane
BATCH = 100
POLL_S = 0.5
RETRY_S = 60.0


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

    def follow(self) -> Iterator[None]:
        """Return once no message of the lane waits or is worked on."""
        while self._lanes.backlog(self._lane):
            yield
            time.sleep(POLL_S)

    @property
    def done(self) -> int:
        """How many of the queued keys were worked on, as far as the lane tells."""
        return max(0, self.queued - self._lanes.backlog(self._lane))


def reconcile(
    settings: Settings, prefix: str = "", track: Track = unseen, *, dry_run: bool = False
) -> Run:
    """Compare bucket and index once and queue what differs; return what was found."""
    with open_comparison(settings, prefix, track, record=not dry_run) as comparison:
        if not dry_run:
            keys = track(comparison.keys(), "queueing", comparison.run.differing)
            for _ in LaneFeed(settings, Lane.BACKFILL).queue(keys):
                pass
        return comparison.run


def keep_reconciled(settings: Settings, prefix: str, every_s: float) -> NoReturn:
    """Reconcile now and then for ever; while something is away, try again."""
    while True:
        try:
            run = reconcile(settings, prefix)
        except (Unavailable, RedisError) as error:
            RECONCILE_FAILURES.inc()
            log.warning("reconcile pauses for %.0f s: %s", RETRY_S, error)
            time.sleep(RETRY_S)
        else:
            log.info("compared in %.1f s, found: %s", run.seconds, run.found)
            time.sleep(every_s)
