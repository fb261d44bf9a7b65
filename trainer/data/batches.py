"""Training examples, read from the cache: which, in which order, cut and blanked by chance.

Everything random is a function of the seed, the epoch and the row, so that a resumed run reads what
an uninterrupted one would have, and several processes divide one and the same batch.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from audiofuse.core.evaluation.clips import Clip
from audiofuse.trainer.data.cache import Entry, read
from audiofuse.trainer.data.metadata import (
    Captions,
    Kind,
    artificial_caption,
    count_sentences,
    metadata_text,
)

log = logging.getLogger(__name__)

IDENTITY_BITS = 63  # of a hash, which torch's int64 holds


@dataclass(frozen=True)
class Row:
    """A clip and the index of one of its sentences, or ``None`` for any: what makes a pair."""

    clip: Clip
    caption: int | None


@dataclass(frozen=True)
class Example:
    """A training pair: windows of at most 10 s with a metadata text, and a sentence for both."""

    windows: list[Samples]
    metadata: str
    sentence: str
    identity: int


@dataclass(frozen=True)
class ExampleConfig:
    """How rows become examples.

    Sounds longer than ``crop_s`` are cut at random. ``drop_metadata`` is the share of examples that
    go without; ``captions`` are the sentences, people's or artificial ones.
    """

    kind: Kind
    crop_s: float
    drop_metadata: float
    captions: Captions
    seed: int


def training_rows(
    clips: Sequence[Clip], *, every_caption: bool, captions: Captions = Captions.REAL
) -> list[Row]:
    """Return what an epoch is made of: each sentence of each clip, or each clip once, by any.

    Clips that have no such captions are left out and counted in the log: captions of another kind
    would mix what is compared.
    """
    counted = [(clip, count_sentences(clip, captions)) for clip in clips]
    if lacking := sum(not count for _, count in counted):
        log.warning("%d of %d clips have no %s captions", lacking, len(clips), captions)
    if every_caption:
        return [Row(clip, index) for clip, count in counted for index in range(count)]
    return [Row(clip, None) for clip, count in counted if count]


def cut(samples: Samples) -> list[Samples]:
    """Cut a waveform into windows of 10 s, the last one shorter."""
    return [samples[at : at + WINDOW_SAMPLES] for at in range(0, samples.size, WINDOW_SAMPLES)]


class Examples(Dataset[Example]):
    """Rows as examples, by epoch and number."""

    def __init__(
        self, rows: Sequence[Row], entries: Mapping[Path, Entry], how: ExampleConfig
    ) -> None:
        """Read rows whose clips are in the cache."""
        self.rows = rows
        self.how = how
        self._entries = entries

    def __getitem__(self, place: tuple[int, int]) -> Example:
        """Read the example of an epoch and a row."""
        epoch, number = place
        row, chance = self.rows[number], np.random.default_rng([self.how.seed, epoch, number])
        sentences = count_sentences(row.clip, self.how.captions)
        caption = chance.integers(sentences) if row.caption is None else row.caption
        dropped = chance.random() < self.how.drop_metadata
        return Example(
            windows=cut(self._crop(row.clip, chance)),
            metadata="" if dropped else metadata_text(row.clip, int(caption), self.how.kind),
            sentence=self._sentence(row.clip, int(caption), chance),
            identity=_number(row.clip.identity),
        )

    def _crop(self, clip: Clip, chance: np.random.Generator) -> Samples:
        entry = self._entries[clip.path]
        length = min(entry.samples, round(self.how.crop_s * SAMPLE_RATE))
        return read(entry, int(chance.integers(entry.samples - length + 1)), length)

    def _sentence(self, clip: Clip, caption: int, chance: np.random.Generator) -> str:
        if self.how.captions is Captions.TEMPLATES:
            return artificial_caption(clip, chance)
        supplied = self.how.captions is Captions.SUPPLIED
        return clip.artificial[caption] if supplied else clip.captions[caption]


@dataclass(frozen=True)
class BatchPlan:
    """How an epoch's rows come in batches.

    ``size`` is that of the whole batch, dealt out among ``processes``; this is number ``rank``.
    ``workers`` processes read ahead, or none.
    """

    size: int
    rank: int = 0
    processes: int = 1
    workers: int = 0


class Batches:
    """A process's share of the batches, epoch by epoch.

    The processes that read ahead live as long as this does: each takes seconds to start.
    """

    def __init__(self, examples: Examples, plan: BatchPlan) -> None:
        """Read as planned."""
        self._examples, self._plan = examples, plan
        self._dealt: list[list[tuple[int, int]]] = []  # of the epoch that is read
        self._loader = DataLoader(
            examples, batch_sampler=self._dealt, num_workers=plan.workers, collate_fn=list,
            multiprocessing_context="spawn" if plan.workers else None,
            persistent_workers=plan.workers > 0,
        )  # fmt: skip

    def epoch(self, epoch: int, first: int) -> Iterator[list[Example]]:
        """Yield an epoch's batches, from batch number ``first`` on; one epoch at a time.

        The last rows that fill no batch are left to chance in another epoch.
        """
        size, plan = self._plan.size, self._plan
        order = np.random.default_rng([self._examples.how.seed, epoch]).permutation(
            len(self._examples.rows)
        )
        self._dealt[:] = [
            [(epoch, int(row)) for row in order[at + plan.rank : at + size : plan.processes]]
            for at in range(first * size, len(order) - size + 1, size)
        ]
        yield from self._loader


def _number(identity: str) -> int:
    digest = hashlib.sha256(identity.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - IDENTITY_BITS)
