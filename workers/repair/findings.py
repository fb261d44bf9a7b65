"""What a comparison of bucket and index may find, and the record of the last one."""

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from redis import Redis

from audiofuse.workers.queue.lanes import key_prefix


class Finding(StrEnum):
    """What a sound is to the index."""

    MISSING = "missing"
    OUTDATED = "outdated"
    ORPHANED = "orphaned"  # a point, or a letter, whose object is gone
    REJECTED = "rejected"  # as it is now
    AGREED = "agreed"


DIFFERENT = (Finding.MISSING, Finding.OUTDATED, Finding.ORPHANED)


@dataclass(frozen=True)
class Run:
    """One comparison: when it ended (Unix time), how long it took, how many of each finding.

    ``in_a_row`` is how many, up to this one, found something that differs.
    """

    at: float
    seconds: float
    found: dict[str, int]
    in_a_row: int = 0

    @property
    def differing(self) -> int:
        """How many sounds differ."""
        return self.count(DIFFERENT)

    def count(self, findings: tuple[Finding, ...]) -> int:
        """Return how many sounds have one of the findings."""
        return sum(self.found[each] for each in findings)


class LastRun:
    """The last comparison of a whole bucket, kept in Redis for whoever asks how it stands."""

    def __init__(self, redis: Redis, index_name: str) -> None:
        """Keep it for the index of this name."""
        self._redis = redis
        self._name = f"{key_prefix(index_name)}reconciled"

    def write(self, run: Run) -> None:
        """Record a comparison."""
        before = self.read()
        in_a_row = 1 + (before.in_a_row if before else 0) if run.differing else 0
        run = replace(run, in_a_row=in_a_row)
        self._redis.set(self._name, json.dumps(asdict(run)))

    def read(self) -> Run | None:
        """Return the last one, if there was any."""
        content: str | None = self._redis.get(self._name)  # type: ignore[assignment]
        return Run(**json.loads(content)) if content else None
