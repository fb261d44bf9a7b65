"""Which clips are learned from and which judge: splits, given or drawn, and leaks between them."""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import TRAIN, VAL, Clip

log = logging.getLogger(__name__)

SHOWN_LEAKS = 5  # that an error names; the rest are counted


def assign_splits(clips: Sequence[Clip], val_share: float, seed: int) -> list[Clip]:
    """Put clips without a split into train or val, all clips of one identity into the same.

    An identity, or the origin of that name, that is in a split already stays there. Else it goes by
    a hash of ``seed`` and identity alone: about ``val_share`` of the identities are val, and more
    data moves none.
    """
    given = {name: clip.split for clip in clips if clip.split
             for name in (clip.origin, clip.identity) if name}  # fmt: skip

    def split_of(identity: str) -> str:
        digest = hashlib.sha256(f"{seed}\0{identity}".encode()).digest()
        drawn = int.from_bytes(digest[:8]) / 2**64  # in [0, 1)
        return given.get(identity) or (VAL if drawn < val_share else TRAIN)

    return [clip if clip.split else replace(clip, split=split_of(clip.identity)) for clip in clips]


def check_leakage(
    clips: Sequence[Clip], contents: Mapping[Path, str], published: Collection[Path] = ()
) -> None:
    """Refuse a sound that is in two splits, by identity, origin, file or content.

    ``contents`` are those of ``cache.Prepared``. Every split counts, so also ``test`` and
    ``distractor``. Benchmarks share a few sounds between their ``published`` splits; those are kept
    as they are, for figures to compare with others', and logged. Raises ``ConfigurationError`` that
    names the first few of the others.
    """
    leaks: dict[tuple[Path, ...], str] = {}
    known: set[tuple[Path, ...]] = set()
    criteria: list[tuple[str, Callable[[Clip], str | None]]] = [
        ("identity", lambda clip: clip.origin or clip.identity),
        ("file", lambda clip: str(clip.path.resolve())),
        ("content", lambda clip: contents.get(clip.path)),
    ]
    for name, of in criteria:
        for places in _in_several_splits(clips, of, published):
            paths = tuple(clip.path for clip in places)
            if all(path in published for path in paths):
                known.add(paths)
                continue
            shown = " and ".join(f"{c.path} ({c.split or 'no split'})" for c in places)
            leaks.setdefault(paths, f"{shown} have one {name}")
    if known:
        log.warning("%d sounds are in several of the published splits, and stay there", len(known))
    if leaks:
        first = "; ".join(list(leaks.values())[:SHOWN_LEAKS])
        more = "; ..." if len(leaks) > SHOWN_LEAKS else ""
        raise ConfigurationError(f"{len(leaks)} sounds are in several splits: {first}{more}")


def give_way(clips: Sequence[Clip], others: Iterable[Clip]) -> list[Clip]:
    """Leave out clips of a sound that ``others`` judge by, and log how many.

    They are known by their identity or origin, as a number on Freesound or a YouTube clip.
    """
    judging = {
        name
        for clip in others
        if clip.split != TRAIN
        for name in (clip.origin, clip.identity)
        if name
    }
    kept = [clip for clip in clips if not judging & {clip.origin, clip.identity}]
    if len(kept) < len(clips):
        log.warning("%d clips are left out: others judge by them", len(clips) - len(kept))
    return kept


def _in_several_splits(
    clips: Iterable[Clip], of: Callable[[Clip], str | None], published: Collection[Path]
) -> Iterator[list[Clip]]:
    """Yield what is in more than one split: a clip of each, a published and another one of each."""
    places: dict[str, dict[tuple[str, bool], Clip]] = {}
    for clip in clips:
        if (value := of(clip)) is not None:
            place = (clip.split, clip.path in published)
            places.setdefault(value, {}).setdefault(place, clip)
    for found in places.values():
        if len({split for split, _ in found}) > 1:
            yield list(found.values())
