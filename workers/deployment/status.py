"""The state of a deployment at a glance, gathered from its queue and its index."""

from dataclasses import asdict, dataclass
from typing import Any

from audiofuse.core.errors import Unavailable
from audiofuse.core.index.index import open_index
from audiofuse.core.settings import Settings
from audiofuse.workers.queue.broker import connect_redis, open_lanes
from audiofuse.workers.queue.dead_letters import DeadLetter, DeadLetters
from audiofuse.workers.queue.followers import Followers
from audiofuse.workers.queue.outages import Outage, Outages
from audiofuse.workers.queue.waiting import WaitingKeys
from audiofuse.workers.repair.brake import Brake, Removals
from audiofuse.workers.repair.findings import LastRun, Run

LETTERS_SHOWN = 10


@dataclass(frozen=True)
class Status:
    """Queue lengths by name, the live encoder version and its points, what was rejected.

    ``outages`` are what workers wait for, ``index_away`` is why this process gets no answer of the
    index, or empty. ``devices`` tells on what each process runs its encoders, workers' and query
    services'. ``waiting`` counts the keys that wait for an encoder version, by version;
    ``broken`` messages that stood in the queue, are none of ours, and were set aside. ``reasons``
    counts the ``dead_letters``; ``reconciled`` is the last comparison of all, ``held_back`` what
    one did not remove because it was too much.
    """

    outages: list[Outage]
    index_away: str
    devices: dict[str, str]
    queue: dict[str, int]
    waiting: dict[str, int]
    broken: int
    version: str | None
    items: int | None
    dead_letters: int
    reasons: dict[str, int]
    latest: list[DeadLetter]
    reconciled: Run | None
    held_back: Removals | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def read_status(settings: Settings) -> Status:
    """Ask queue and index; raises ``RedisError`` when the queue is away."""
    redis, lanes = connect_redis(settings), open_lanes(settings)
    name = settings.index_name
    letters = DeadLetters(redis, name)
    version, items, index_away = _read_index(settings)
    return Status(
        outages=Outages(redis, name).current(),
        index_away=index_away,
        devices=Followers(redis, name).devices(),
        queue=lanes.lengths(),
        waiting=WaitingKeys(redis, name).counts(),
        broken=lanes.broken(),
        version=version,
        items=items,
        dead_letters=letters.count(),
        reasons={str(reason): count for reason, count in letters.reasons().items()},
        latest=letters.latest(LETTERS_SHOWN),
        reconciled=LastRun(redis, name).read(),
        held_back=Brake(redis, name).held(),
    )


def _read_index(settings: Settings) -> tuple[str | None, int | None, str]:
    """Return the live version, how many points it has, and what keeps both from being known."""
    index = open_index(settings)
    try:
        live = index.live()
        return (live.version, index.count(live), "") if live else (None, 0, "")
    except Unavailable as error:
        return None, None, str(error)
