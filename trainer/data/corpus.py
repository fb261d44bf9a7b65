"""Everything a run works on: clips of all sources, decoded, divided, checked for leaks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import (
    TEST,
    TRAIN,
    VAL,
    Clip,
    Query,
    ask_for_captions,
    select_queries,
)
from audiofuse.core.settings import Settings
from audiofuse.trainer.data.cache import AudioCache, Entry, Progress, no_progress
from audiofuse.trainer.data.datasets import read_dataset
from audiofuse.trainer.data.splits import assign_splits, check_leakage, give_way

log = logging.getLogger(__name__)

MAX_DURATION_S = 3600.0
VAL_SHARE = 0.1  # of the identities, where nothing says


@dataclass(frozen=True)
class Corpus:
    """Clips that can be decoded, and where their samples are.

    ``benchmarks`` are the names of the collections whose splits are published.
    """

    clips: list[Clip]
    entries: dict[Path, Entry]
    benchmarks: tuple[str, ...] = ()

    @property
    def train(self) -> list[Clip]:
        """The clips to learn from."""
        return [clip for clip in self.clips if clip.split == TRAIN]

    @property
    def gallery(self) -> list[Clip]:
        """The clips to find when val asks: none of those to learn from or of the test.

        Test sounds would choose the weights that are kept, and no benchmark ranks both.
        """
        return [clip for clip in self.clips if clip.split not in {TRAIN, TEST}]

    @property
    def queries(self) -> list[Query]:
        """What is asked for the clips of the validation split."""
        return select_queries(self.clips, VAL)


@dataclass(frozen=True)
class Division:
    """How clips without a split are divided: the share of identities for validation, by a seed.

    ``val_share`` is ``None`` where nobody asked for a share: then it is ``VAL_SHARE``.
    """

    val_share: float | None = None
    seed: int = 0


def prepare_corpus(
    sources: Sequence[str],
    settings: Settings,
    folder: Path,
    division: Division,
    progress: Progress = no_progress,
) -> Corpus:
    """Read and decode sources; what cannot be used is logged by name, and left out.

    ``folder`` keeps the decoded audio. Raises ``ConfigurationError`` when a sound is in several
    splits that no benchmark publishes so, and for a ``val_share`` that divides nothing.
    """
    read = [read_dataset(each, settings, folder / "downloads", progress) for each in sources]
    for key, error in (rejected for dataset in read for rejected in dataset.rejected):
        log.warning("left out: %s: %s", key, error)
    clips = [ask_for_captions(c) for each in read if not each.gives_way for c in each.clips]
    for dataset in read:
        if dataset.gives_way:
            clips += give_way(dataset.clips, clips)
    benchmarks = [clip for dataset in read if dataset.published for clip in dataset.clips]
    published = {clip.path for clip in benchmarks}
    prepared = AudioCache(folder / "decoded", MAX_DURATION_S).prepare(clips, progress)
    for clip, error in prepared.rejected:
        log.warning("left out: %s: %s", clip.path, error)
    decoded = [clip for clip in clips if clip.path in prepared.entries]
    if division.val_share is not None and decoded and all(clip.split for clip in decoded):
        raise ConfigurationError("--val-share: every sound has a split of its own: leave it out")
    divided = assign_splits(decoded, division.val_share or VAL_SHARE, division.seed)
    check_leakage(divided, prepared.contents, published)
    if not divided:
        raise ConfigurationError("no clip can be decoded")
    names = tuple(dict.fromkeys(clip.collection for clip in benchmarks))
    return Corpus(divided, prepared.entries, names)
