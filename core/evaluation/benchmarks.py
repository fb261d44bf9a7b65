"""Published benchmarks and their protocols: which clips are ranked, which captions ask.

ClothoV2's evaluation split is ranked for its 1,045 x 5 captions, AudioCaps' test split for 4,875,
one clip being right for each; neither with sounds of another split (arXiv 2406.15897, authors'
code). DCASE 2025, task 6, adds captions of ClothoV2 that describe several clips, by mAP@16.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.audiocaps import audiocaps_tables, read_audiocaps
from audiofuse.core.evaluation.clips import TEST, TRAIN, VAL, Clip, Query, select_queries
from audiofuse.core.evaluation.clotho import (
    CLOTHO_SPLITS,
    clotho_tables,
    read_clotho,
    read_relevance,
)

RELEVANCE_CUTOFF = 16  # DCASE 2025's
WHOLE = {("clotho", TEST): (1045, 5225), ("audiocaps", TEST): (975, 4875)}  # clips, queries
SPLITS = CLOTHO_SPLITS | {name: name for name in (TRAIN, VAL, TEST)}  # by any of its names


@dataclass(frozen=True)
class Benchmark:
    """A split by its protocol: the clips to rank, and the queries for one clip each.

    ``relevance`` are queries for several clips, by mAP@16, if they lie beside the data. ``lacking``
    tells what the protocol has more of, or is empty: figures of less are not comparable.
    """

    clips: list[Clip]
    queries: list[Query]
    relevance: list[Query] = field(default_factory=list)
    lacking: str = ""


def published_reader(folder: Path) -> Callable[[Path], list[Clip]] | None:
    """Return what reads a folder as the benchmark that its tables are of, if it is one."""
    if clotho_tables(folder):
        return read_clotho
    return read_audiocaps if audiocaps_tables(folder) else None


def read_benchmark(folder: Path, split: str) -> Benchmark | None:
    """Return a split of the benchmark that a folder holds; ``None`` where it holds none.

    ``split`` may be named as ClothoV2 or AudioCaps does. Raises ``ConfigurationError`` for another
    name, for a split that has no sounds, and for tables that cannot be read.
    """
    reader = published_reader(folder)
    if reader is None:
        return None
    if split not in SPLITS:
        raise ConfigurationError(f"no split {split!r}: there are {', '.join(SPLITS)}")
    clips = [clip for clip in reader(folder) if clip.split == SPLITS[split]]
    if not clips:
        raise ConfigurationError(f"{folder} has no sounds of the split {split!r}")
    queries = select_queries(clips, SPLITS[split])
    held = {clip.identity for clip in clips}
    several = read_relevance(folder) if SPLITS[split] == TEST and reader is read_clotho else []
    return Benchmark(
        clips,
        queries,
        [query for query in several if held & {query.identity, *query.others}],
        _lacking(clips, queries),
    )


def _lacking(clips: list[Clip], queries: list[Query]) -> str:
    whole = WHOLE.get((clips[0].collection, clips[0].split))
    if whole is None or whole == (len(clips), len(queries)):
        return ""
    return (
        f"{len(clips):,} clips and {len(queries):,} queries; the benchmark has {whole[0]:,} and "
        f"{whole[1]:,}, so these figures are not comparable with others'"
    )
