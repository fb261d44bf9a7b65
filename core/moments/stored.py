"""What an item's point says of its moments: how many there are, and of what state of its sound.

    item      moments: 720     moments_state: 1f2e3d4c5b6a.0a1b2c3d4e5f
    moments   number: 0 to 719         state: the same

A state tells everything that an item's moments depend on. Its first half is of what is heard, so
that moments with an equal one have equal audio vectors, whatever the words.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from audiofuse.core.model.config import Grid

DIGITS = 12  # of each half: of some versions of one object, not of all objects
# What ``moments_named`` must know of an item.
STATE_FIELDS = (
    "etag", "sidecar_etag", "sidecar_problem", "user_metadata_hash", "modified", "duration_s",
)  # fmt: skip


def moments_named(payload: Mapping[str, Any], grid: Grid | None) -> tuple[int, str]:
    """Return how many moments an item of this payload is to have by a grid, and in which state.

    Without any that is "". No ``grid``: nothing has moments.
    """
    count = grid.count(payload.get("duration_s", 0)) if grid else 0
    return count, moments_state(payload, grid) if grid and count else ""


def names_moments(payload: Mapping[str, Any], named: tuple[int, str]) -> bool:
    """Whether the payload of an item names these moments; one of an earlier release names none."""
    return (payload.get("moments", 0), payload.get("moments_state", "")) == named


def moments_state(payload: Mapping[str, Any], grid: Grid) -> str:
    """Return what tells the moments of one state of an item from those of others."""
    heard = [payload["etag"], str(grid)]
    words = [
        payload["sidecar_etag"],
        payload.get("sidecar_problem", ""),
        payload.get("user_metadata_hash", ""),
        payload["modified"],
    ]
    return f"{_digest(heard)}.{_digest(words)}"


def heard_alike(one: str, other: str) -> bool:
    """Whether moments of two states have equal audio vectors."""
    return one.partition(".")[0] == other.partition(".")[0]


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:DIGITS]
