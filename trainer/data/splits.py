"""Which clips are learned from and which judge: splits, given or drawn, and leaks between them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip

TRAIN, VAL, TEST = "train", "val", "test"
SHOWN_LEAKS = 5  # that an error names; the rest are counted


def assign_splits(clips: Sequence[Clip], val_share: float, seed: int) -> list[Clip]:
    """Put clips without a split into train or val, all clips of one identity into the same.

    An identity that is in a split already stays there. Else it goes by a hash of ``seed`` and
    identity alone: about ``val_share`` of the identities are val, and more data moves none.
    """
    given = {clip.identity: clip.split for clip in clips if clip.split}

    def split_of(identity: str) -> str:
        digest = hashlib.sha256(f"{seed}\0{identity}".encode()).digest()
        drawn = int.from_bytes(digest[:8]) / 2**64  # in [0, 1)
        return given.get(identity) or (VAL if drawn < val_share else TRAIN)

    return [clip if clip.split else replace(clip, split=split_of(clip.identity)) for clip in clips]


def check_leakage(clips: Sequence[Clip], contents: Mapping[Path, str]) -> None:
    """Refuse a sound that is in two splits, by identity, file or content.

    ``contents`` are those of ``cache.Prepared``. Every split counts, so also ``test`` and
    ``distractor``. Raises ``ConfigurationError`` that names the first few.
    """
    leaks: dict[tuple[Path, ...], str] = {}
    criteria: list[tuple[str, Callable[[Clip], str | None]]] = [
        ("identity", lambda clip: clip.identity),
        ("file", lambda clip: str(clip.path.resolve())),
        ("content", lambda clip: contents.get(clip.path)),
    ]
    for name, of in criteria:
        for places in _in_several_splits(clips, of):
            shown = " and ".join(f"{c.path} ({c.split or 'no split'})" for c in places)
            leaks.setdefault(tuple(clip.path for clip in places), f"{shown} have one {name}")
    if leaks:
        first = "; ".join(list(leaks.values())[:SHOWN_LEAKS])
        more = "; ..." if len(leaks) > SHOWN_LEAKS else ""
        raise ConfigurationError(f"{len(leaks)} sounds are in several splits: {first}{more}")


def _in_several_splits(
    clips: Iterable[Clip], of: Callable[[Clip], str | None]
) -> Iterator[list[Clip]]:
    """Yield one clip of each split for what is in more than one."""
    places: dict[str, dict[str, Clip]] = {}
    for clip in clips:
        if (value := of(clip)) is not None:
            places.setdefault(value, {}).setdefault(clip.split, clip)
    yield from (list(each.values()) for each in places.values() if len(each) > 1)
