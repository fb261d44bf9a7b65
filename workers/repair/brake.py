"""The brake: what a missing mount, an emptied bucket or a wrong address must not do to the index.

A point whose object is gone is an orphan, and a comparison has it removed. But where very many are
orphans at once it is more likely that the bucket is not the one that was indexed. Then nothing is
removed before an operator says so: ``audiofuse reconcile --remove``.
"""

import json
import time
from dataclasses import asdict, dataclass, field

from redis import Redis

from audiofuse.workers.queue.lanes import key_prefix

# More lost items than either bound are held back. Raising one lets a larger part of the index go
# without a word; lowering it stops more clearings that somebody meant.
LOST_ITEMS = 100
LOST_SHARE = 0.2  # of all items


@dataclass(frozen=True)
class Removals:
    """How many points under ``prefix`` have ``lost`` their objects, of how many ``items`` in all.

    ``at`` is the Unix time at which that was found.
    """

    lost: int
    items: int
    prefix: str = ""
    at: float = field(default_factory=time.time)

    @property
    def are_too_many(self) -> bool:
        """Whether the brake holds."""
        return self.lost > max(LOST_ITEMS, LOST_SHARE * self.items)

    def __str__(self) -> str:
        """Say what was found, if it is too much, and what to do."""
        command = "audiofuse reconcile --remove"
        if self.prefix:
            command += f" --prefix {self.prefix!r}"
        return (
            f"{self.lost} of {self.items} items have lost their objects; none of them is removed, "
            f"because the bucket may not be the one that was indexed: a mount may be missing, or "
            f"its address wrong. If they were deleted on purpose: {command}"
        )


class Brake:
    """What comparisons of a bucket held back, kept in Redis for whoever asks."""

    def __init__(self, redis: Redis, index_name: str) -> None:
        """Keep it for the index of this name."""
        self._redis = redis
        self._name = f"{key_prefix(index_name)}brake"

    def hold(self, removals: Removals) -> None:
        """Record what is held back."""
        self._redis.set(self._name, json.dumps(asdict(removals)))

    def release(self, prefix: str) -> None:
        """Forget what was held back under a prefix: it was compared again, or may be removed."""
        held = self.held()
        if held and held.prefix.startswith(prefix):
            self._redis.delete(self._name)

    def held(self) -> Removals | None:
        """Return what is held back, if anything is."""
        content: str | None = self._redis.get(self._name)  # type: ignore[assignment]
        return Removals(**json.loads(content)) if content else None
