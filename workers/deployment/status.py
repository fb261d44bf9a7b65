"""The state of a deployment at a glance, gathered from its queue and its index."""

from dataclasses import asdict, dataclass
from typing import Any

from audiofuse.core.index.index import open_index
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import bucket_name
from audiofuse.workers.queue.broker import connect_redis, open_lanes
from audiofuse.workers.queue.dead_letters import DeadLetter, DeadLetters
from audiofuse.workers.repair.brake import Brake, Removals
from audiofuse.workers.repair.findings import LastRun, Run

LETTERS_SHOWN = 10


@dataclass(frozen=True)
class Status:
    """Queue lengths by name, the live encoder version and its points, what was rejected.

    ``broken`` counts messages that stood in the queue, are none of ours, and were set aside.
    ``reasons`` counts the ``dead_letters``; ``reconciled`` is the last comparison of all,
    ``held_back`` what one did not remove because it was too much.
    """

    queue: dict[str, int]
    broken: int
    version: str | None
    items: int
    dead_letters: int
    reasons: dict[str, int]
    latest: list[DeadLetter]
    reconciled: Run | None
    held_back: Removals | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def read_status(settings: Settings) -> Status:
    """Ask queue and index; raises ``Unavailable`` or ``RedisError`` when they are away."""
    redis, lanes = connect_redis(settings), open_lanes(settings)
    bucket = bucket_name(settings)
    letters = DeadLetters(redis, bucket)
    index = open_index(settings)
    live = index.live()
    return Status(
        queue=lanes.lengths(),
        broken=lanes.broken(),
        version=live.version if live else None,
        items=index.count(live) if live else 0,
        dead_letters=letters.count(),
        reasons={str(reason): count for reason, count in letters.reasons().items()},
        latest=letters.latest(LETTERS_SHOWN),
        reconciled=LastRun(redis, bucket).read(),
        held_back=Brake(redis, bucket).held(),
    )
