"""How far the index is in step with the bucket, and what changed since one looked last.

Asked of queue and index, as anybody could: nothing that works must tell.
"""

from dataclasses import dataclass

from redis import RedisError

from audiofuse.core.errors import Reason, Unavailable
from audiofuse.core.index.index import Order, Point, open_index
from audiofuse.core.query import EVERYTHING
from audiofuse.core.settings import Settings
from audiofuse.workers.queue.broker import connect_redis, open_lanes
from audiofuse.workers.queue.dead_letters import DeadLetter, DeadLetters
from audiofuse.workers.repair.findings import Finding, LastRun

AWAY = (Unavailable, RedisError)  # what a look may raise
LATEST = Order("indexed_at", descending=True)
MOST_CHANGES = 20  # of each kind that one look names
# What was told already. Lower than what two looks can see, something would be told twice: a point
# that goes lets an older one be among the latest again.
REMEMBERED = 1000
OF_THE_BUCKET = (Finding.MISSING, Finding.OUTDATED, Finding.REJECTED, Finding.AGREED)

Happened = tuple[str, float]  # what, and when


@dataclass(frozen=True)
class Progress:
    """How many sounds the bucket has, how many are indexed, were rejected, how many messages wait.

    ``sounds`` is ``None`` until the bucket was looked through.
    """

    sounds: int | None
    indexed: int
    rejected: int
    waiting: int

    @property
    def done(self) -> int:
        """How many sounds are settled."""
        return self.indexed + self.rejected

    @property
    def total(self) -> int | None:
        """How many sounds there are, by now."""
        return None if self.sounds is None else max(self.sounds, self.done)

    @property
    def is_in_step(self) -> bool:
        """Whether all is done that the look through the bucket has found."""
        return self.sounds is not None and not self.waiting


@dataclass(frozen=True)
class Changes:
    """What happened between two looks: keys that were indexed, letters, by how much fewer items.

    Of ``indexed`` and ``rejected`` the latest, at most ``MOST_CHANGES`` each, the oldest first.
    """

    indexed: list[str]
    rejected: list[DeadLetter]
    fewer: int


class Follower:
    """Follows a deployment; every look raises one of ``AWAY`` if a part of it does not answer."""

    def __init__(self, settings: Settings, since: float) -> None:
        """Follow the deployment of these settings, which runs since this Unix time."""
        redis = connect_redis(settings)
        self._letters = DeadLetters(redis, settings.index_name)
        self._last_run = LastRun(redis, settings.index_name)
        self._lanes = open_lanes(settings)
        self._index = open_index(settings)
        self._began = since
        self._items = 0
        self._seen: set[Happened] = set()  # points are not written in the order of their times

    def progress(self) -> Progress:
        """Look how far it is."""
        run = self._last_run.read()
        reasons = self._letters.reasons()
        backlogs = self._lanes.backlogs().values()
        return Progress(
            sounds=run.count(OF_THE_BUCKET) if run and run.at >= self._began else None,
            indexed=self._count(),
            rejected=sum(n for reason, n in reasons.items() if reason is not Reason.BAD_SIDECAR),
            waiting=sum(each.ready + each.unacknowledged for each in backlogs),
        )

    def changes(self) -> Changes:
        """Look what happened since this was asked the last time; the first time, what ever did."""
        before, self._items = self._items, self._count()
        points = {(each.id, each.payload["indexed_at"] / 1000): each for each in self._latest()}
        letters = {(each.key, each.at): each for each in self._letters.latest(MOST_CHANGES)}
        seen = self._seen
        latest_last = sorted(seen | points.keys() | letters.keys(), key=lambda each: each[1])
        self._seen = set(latest_last[-REMEMBERED:])
        return Changes(
            indexed=[str(points[each].payload["key"]) for each in points if each not in seen][::-1],
            rejected=[letters[each] for each in letters if each not in seen][::-1],
            fewer=max(0, before - self._items),
        )

    def _latest(self) -> list[Point]:
        live = self._index.live()
        if live is None:
            return []
        fields = ["key", "indexed_at"]
        return self._index.page(live, fields, EVERYTHING, LATEST, MOST_CHANGES).points

    def _count(self) -> int:
        live = self._index.live()
        return self._index.count(live) if live else 0
