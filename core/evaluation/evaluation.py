"""Retrieval quality: how well an encoder finds the right sounds for human sentences.

The gallery is every clip that is given; every clip of an identity that a query means is relevant.
Metrics as in arXiv 2406.15897, with several relevant.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError, Rejected
from audiofuse.core.evaluation.clips import Clip, Query
from audiofuse.core.evaluation.intervals import estimate
from audiofuse.core.evaluation.scorecards import SYSTEMS, Figure, Score, data_hash
from audiofuse.core.items import Metadata
from audiofuse.core.query import normalise

AUDIO, METADATA, HYBRID = SYSTEMS
CUTOFF = 10  # mAP@10, and the deepest recall
RECALLS = (1, 5, 10)
ROWS_PER_BATCH = 64  # texts or items encoded at once; more needs memory, fewer is slower
QUERIES_PER_BATCH = 1024  # bounds memory: each is compared with the whole gallery
MAX_DURATION_S = 4 * 3600.0  # longer recordings are not evaluated, but listed


@dataclass(frozen=True)
class Metrics:
    """Means over queries, each from 0 to 1."""

    mean_average_precision: float
    mean_reciprocal_rank: float
    recall: dict[int, float]
    cutoff: int = CUTOFF

    def as_dict(self) -> dict[str, float]:
        """Return the metrics under their usual names."""
        recalls = {f"R@{k}": value for k, value in self.recall.items()}
        first = {"MRR": self.mean_reciprocal_rank}
        return {f"mAP@{self.cutoff}": self.mean_average_precision} | recalls | first


@dataclass(frozen=True)
class QueryScores:
    """Scores of single queries: each tensor is float64 ``(queries,)``, from 0 to 1.

    ``cutoff`` is the last rank that counts for the average precision.
    """

    average_precision: Tensor
    reciprocal_rank: Tensor
    recall: dict[int, Tensor]
    cutoff: int = CUTOFF

    def mean(self) -> Metrics:
        """Return the means over all queries, each query of the same weight."""
        return Metrics(
            float(self.average_precision.mean()),
            float(self.reciprocal_rank.mean()),
            {k: float(each.mean()) for k, each in self.recall.items()},
            self.cutoff,
        )

    def by_name(self) -> dict[str, Tensor]:
        """Return the scores by the usual names of their means."""
        recalls = {f"R@{k}": values for k, values in self.recall.items()}
        return (
            {f"mAP@{self.cutoff}": self.average_precision} | recalls | {"MRR": self.reciprocal_rank}
        )

    def select(self, rows: Sequence[int]) -> Self:
        """Return the scores of some of the queries."""
        return self._combine(lambda parts: parts[0][rows], [self])

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join the scores of different queries."""
        return cls._combine(torch.cat, parts)

    @classmethod
    def average(cls, parts: Sequence[Self]) -> Self:
        """Average several scores of the same queries, query by query."""
        return cls._combine(lambda scores: torch.stack(scores).mean(0), parts)

    @classmethod
    def _combine(cls, how: Callable[[list[Tensor]], Tensor], parts: Sequence[Self]) -> Self:
        return cls(
            how([part.average_precision for part in parts]),
            how([part.reciprocal_rank for part in parts]),
            {k: how([part.recall[k] for part in parts]) for k in RECALLS},
            parts[0].cutoff,
        )


@dataclass(frozen=True)
class Relevance:
    """Which clips each query means, as numbers of identities.

    ``queries`` is int64 ``(queries, most)``, filled with -1 where a query means fewer identities;
    ``clips`` is int64 ``(clips,)``. Queries by clips, as booleans, would be 400 MB for 20,000 of
    each; so rows are made as needed.
    """

    queries: Tensor
    clips: Tensor

    @classmethod
    def of(cls, queries: Sequence[Query], clips: Sequence[Clip]) -> Self:
        """Return it numbered; ``ConfigurationError`` when a query means none of the clips."""
        numbers = {clip.identity: number for number, clip in enumerate(clips)}
        meant = [
            [numbers[name] for name in (query.identity, *query.others) if name in numbers]
            for query in queries
        ]
        for query, found in zip(queries, meant, strict=True):
            if not found:
                raise ConfigurationError(f"no clip of {query.identity!r} could be decoded")
        most = max(map(len, meant), default=1)
        return cls(
            torch.tensor([found + [-1] * (most - len(found)) for found in meant]),
            torch.tensor([numbers[clip.identity] for clip in clips], dtype=torch.int64),
        )

    @property
    def counts(self) -> Tensor:
        """How many clips each query means: int64 ``(queries,)``, at least 1."""
        of_identity = torch.bincount(self.clips, minlength=len(self.clips))
        return (of_identity[self.queries] * (self.queries >= 0)).sum(1)

    def rows(self, some: slice) -> Tensor:
        """Return which clips some of the queries mean: boolean ``(queries, clips)``."""
        return (self.queries[some, :, None] == self.clips).any(1)


@dataclass
class Gallery:
    """Clips with their audio embeddings; clips that could not be decoded are listed, not fatal."""

    clips: list[Clip] = field(default_factory=list)
    embeddings: list[AudioEmbedding] = field(default_factory=list)
    rejected: list[tuple[Clip, Rejected]] = field(default_factory=list)


def encode_clips(encoder: Encoder, clips: Iterable[Clip]) -> Gallery:
    """Decode and embed every clip once."""
    gallery = Gallery()
    for clip in clips:
        try:
            with open_recording(clip.path, MAX_DURATION_S) as recording:
                embedding = encoder.encode_audio(recording.windows())
        except Rejected as error:
            gallery.rejected.append((clip, error))
        else:
            gallery.clips.append(clip)
            gallery.embeddings.append(embedding)
    return gallery


def blank_metadata(gallery: Gallery, share: float, seed: int = 0) -> Gallery:
    """Return the gallery without the metadata of a share of its clips, chosen by ``seed``."""
    order = list(range(len(gallery.clips)))
    random.Random(seed).shuffle(order)  # noqa: S311 - chooses what to blank, guards nothing
    blanked = set(order[: round(share * len(order))])
    clips = [
        replace(clip, metadata=Metadata()) if row in blanked else clip
        for row, clip in enumerate(gallery.clips)
    ]
    return Gallery(clips, gallery.embeddings, gallery.rejected)


def evaluate(encoder: Encoder, gallery: Gallery, queries: Sequence[Query]) -> dict[str, Metrics]:
    """Return the means of what ``judge`` returns."""
    return {name: each.mean() for name, each in judge(encoder, gallery, queries).items()}


def score_of(
    asked: str, scores: dict[str, QueryScores], queries: Sequence[Query], gallery: Gallery
) -> Score:
    """Return what ``judge`` returned with intervals over identities, for a scorecard."""
    identities = [query.identity for query in queries]

    def figure(values: Tensor) -> Figure:
        found = estimate(identities, values)
        return Figure(value=found.value, low=found.low, high=found.high)

    clips = ((clip.identity, clip.metadata.text) for clip in gallery.clips)
    return Score(
        asked=asked,
        data=data_hash([*queries, *clips]),
        queries=len(queries),
        sounds=len(gallery.clips),
        figures={
            ranked: {name: figure(values) for name, values in each.by_name().items()}
            for ranked, each in scores.items()
        },
    )


def judge(
    encoder: Encoder, gallery: Gallery, queries: Sequence[Query], cutoff: int = CUTOFF
) -> dict[str, QueryScores]:
    """Score audio only, metadata only and both, against the same queries.

    Metadata only is left out where the encoder gives metadata no vector of its own. ``cutoff`` is
    the last rank that counts for the average precision.
    Raises ``ConfigurationError`` when a query means a sound that the gallery does not hold.
    """
    relevant = Relevance.of(queries, gallery.clips)
    asked = encode_queries(encoder, queries)
    texts = [clip.metadata.text for clip in gallery.clips]
    systems = {AUDIO: item_vectors(encoder, gallery, [""] * len(texts))}
    if encoder.config.places_metadata:
        systems[METADATA] = _metadata_vectors(encoder, texts)
    systems[HYBRID] = item_vectors(encoder, gallery, texts)
    return {name: _score_cosines(asked, items, relevant, cutoff) for name, items in systems.items()}


def judge_hybrid(encoder: Encoder, gallery: Gallery, queries: Sequence[Query]) -> QueryScores:
    """Score what ``judge`` calls hybrid alone, for a third of the work; errors are the same."""
    relevant = Relevance.of(queries, gallery.clips)
    items = item_vectors(encoder, gallery, [clip.metadata.text for clip in gallery.clips])
    return _score_cosines(encode_queries(encoder, queries), items, relevant)


def encode_queries(encoder: Encoder, queries: Sequence[Query]) -> Tensor:
    """Return the queries' vectors, of unit length: ``(queries, dim)``."""
    texts = [query.text for query in queries]
    asked = _in_batches(lambda rows: encoder.encode_text([texts[row] for row in rows]), len(texts))
    return torch.nn.functional.normalize(asked)


def item_vectors(encoder: Encoder, gallery: Gallery, texts: Sequence[str]) -> Tensor:
    """Fuse each clip with its text, "" for none: ``(clips, dim)``, of unit length.

    Of an item of which the encoder uses nothing the vector is 0: nothing to find it by.
    """

    def fuse(rows: list[int]) -> Floats:
        audio = AudioEmbedding.stack([gallery.embeddings[row] for row in rows])
        return encoder.fuse(audio, [texts[row] for row in rows]).vectors

    return _in_batches(fuse, len(texts)).nan_to_num(0.0)  # NaN would be ranked first


def _metadata_vectors(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    count = len(texts)
    words = _in_batches(lambda rows: encoder.encode_metadata([texts[row] for row in rows]), count)
    words = torch.nn.functional.normalize(words)
    words[[not normalise(text) for text in texts]] = 0  # no metadata: nothing to find it by
    return words


def _in_batches(encode: Callable[[list[int]], Floats], count: int) -> Tensor:
    starts = range(0, count, ROWS_PER_BATCH)
    parts = [encode(list(range(s, min(s + ROWS_PER_BATCH, count)))) for s in starts]
    return torch.cat([torch.from_numpy(part) for part in parts])


def _score_cosines(
    asked: Tensor, items: Tensor, relevant: Relevance, cutoff: int = CUTOFF
) -> QueryScores:
    starts = range(0, len(asked), QUERIES_PER_BATCH)
    batches = [slice(start, start + QUERIES_PER_BATCH) for start in starts]
    return QueryScores.concatenate(
        [score(asked[b] @ items.T, relevant.rows(b), cutoff) for b in batches]
    )


def score(similarity: Tensor, relevant: Tensor, cutoff: int = CUTOFF) -> QueryScores:
    """Score rankings, given similarities and relevance, both ``(queries, items)``.

    Every query needs a relevant item. AP@k sums the precision at each relevant item among the
    first k and divides by the number that could be there; R@k is the share of a query's relevant
    items among the first k; the reciprocal rank is that of the first relevant item, however deep.
    Items of equal similarity keep the gallery's order.
    """
    order = similarity.argsort(dim=1, descending=True, stable=True)
    ranked = relevant.gather(1, order)
    hits = ranked[:, : max(cutoff, *RECALLS)].double()
    wanted = relevant.sum(1).double()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1, dtype=torch.double)
    return QueryScores(
        average_precision=(precision * hits)[:, :cutoff].sum(1) / wanted.clamp(max=cutoff),
        reciprocal_rank=1 / (ranked.int().argmax(1).double() + 1),
        recall={k: hits[:, :k].sum(1) / wanted for k in RECALLS},
        cutoff=cutoff,
    )
