"""Backfill: hand over what differs, once, now and then, or until a generation lacks nothing."""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import NoReturn

from redis import RedisError

from audiofuse.core.bundles.document import POLL_S
from audiofuse.core.errors import Unavailable
from audiofuse.core.retrying import BackOff, retry, warn
from audiofuse.core.settings import Settings
from audiofuse.workers.repair.agreement import FOLLOWED, Agreement
from audiofuse.workers.repair.comparison import Comparison, Track, unseen
from audiofuse.workers.repair.feed import LaneFeed
from audiofuse.workers.repair.findings import Run
from audiofuse.workers.repair.listing import listed
from audiofuse.workers.repair.reconcile import open_reconciler
from audiofuse.workers.telemetry.metrics import RECONCILE_FAILURES
from audiofuse.workers.telemetry.names import Lane

log = logging.getLogger(__name__)

AWAY = (Unavailable, RedisError)
RECONCILE_AGAIN = BackOff(first_s=60, most_s=60)
BUILD_AGAIN = BackOff(first_s=5, most_s=5)


def reconcile(  # noqa: PLR0913 - what is compared, and what is done with it
    settings: Settings,
    prefix: str = "",
    track: Track = unseen,
    *,
    dry_run: bool = False,
    remove: bool = False,
    inventory: str = "",
) -> Comparison:
    """Compare bucket and index once and queue what differs; return what was found.

    Too many removals are held back without ``remove``. ``inventory`` is where the manifest of one
    is, instead of listing the bucket.
    """
    reconciler = open_reconciler(settings)
    with (
        listed(settings, prefix, inventory) as listing,
        reconciler.compare(
            prefix, track, record=not dry_run, remove=remove, listing=listing
        ) as comparison,
    ):
        findings = comparison.to_queue(remove=remove)
        if not dry_run:
            total = comparison.run.count(findings)
            keys = track(comparison.keys(*findings), "queueing", total)
            for _ in LaneFeed(settings, Lane.BACKFILL).queue(keys):
                pass
        return comparison


def keep_reconciled(settings: Settings, prefix: str, every_s: float) -> NoReturn:
    """Reconcile now and then for ever; while something is away, try again.

    Of several buckets one that is away does not keep the others from it.
    """

    def tell(error: Exception, pause_s: float) -> None:
        RECONCILE_FAILURES.inc()
        log.warning("reconcile pauses for %.0f s: %s", pause_s, error)

    while True:
        reconciler = open_reconciler(settings)
        parts, runs = list(reconciler.parts(prefix)), list[Run]()
        retry(partial(_reconcile_each, settings, [*parts], runs), AWAY, RECONCILE_AGAIN, tell)
        if not prefix and parts != [prefix]:  # else it was recorded by itself
            reconciler.record(runs)
        time.sleep(every_s)


def _reconcile_each(settings: Settings, due: list[str], runs: list[Run]) -> None:
    """Reconcile what is ``due``, all of it that can be; raise what the last that cannot raised."""
    failure: Exception | None = None
    for part in tuple(due):
        try:
            run = reconcile(settings, part).run
        except AWAY as error:
            failure = error
        else:
            log.info("compared %sin %.1f s, found: %s", part and f"{part} ", run.seconds, run.found)
            due.remove(part)
            runs.append(run)
    if failure:
        raise failure


def build(agreement: Agreement, feed: LaneFeed, is_wanted: Callable[[], bool]) -> bool:
    """Queue what a generation lacks until it lacks nothing; false if that is not wanted any more.

    While something is away this waits for it. ``is_wanted`` is asked every second or so.
    """

    def work() -> bool:
        return is_wanted() and all(is_wanted() for _ in _now_and_then(_fill(agreement, feed)))

    return retry(work, AWAY, BUILD_AGAIN, warn(log, "building waits"))


def _fill(agreement: Agreement, feed: LaneFeed) -> Iterator[None]:
    """Compare, queue and wait until all is done; comes up for air between."""
    while True:
        with agreement.compare() as comparison:
            if comparison.removals.are_too_many:
                raise Unavailable(str(comparison.removals))
            keys = list(islice(comparison.keys(), FOLLOWED + 1))
            yield from feed.queue(comparison.keys())
            yield from feed.follow(comparison.keys(), partial(agreement.unsettled, comparison))
        if not agreement.lagging(keys):
            return
        yield


def _now_and_then(steps: Iterator[None]) -> Iterator[None]:
    """Take all steps, and come up for air after each second of them."""
    due = 0.0
    for _ in steps:
        if time.monotonic() > due:
            yield
            due = time.monotonic() + POLL_S
