"""Retrieval quality: how well an encoder finds the right sounds for human sentences.

The gallery is every clip of all manifests; the queries are those of the rows in one split; every
clip of the query's identity is relevant. Metrics as in arXiv 2406.15897, with several relevant.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from core.audio import open_recording
from core.clips import Clip, Query
from core.encoder import Encoder
from core.errors import ConfigurationError, Rejected
from core.fusion import Heard

CUTOFF = 10  # mAP@10, and the deepest recall
RECALLS = (1, 5, 10)
ROWS_PER_BATCH = 64
MAX_DURATION_S = 4 * 3600.0


@dataclass(frozen=True)
class Metrics:
    """Means over queries, each from 0 to 1."""

    mean_average_precision: float
    recall: dict[int, float]

    def as_dict(self) -> dict[str, float]:
        """Return the metrics under their usual names."""
        recalls = {f"R@{k}": value for k, value in self.recall.items()}
        return {f"mAP@{CUTOFF}": self.mean_average_precision} | recalls


@dataclass
class Gallery:
    """Clips with what was heard of them; clips that could not be heard are listed, not fatal."""

    clips: list[Clip] = field(default_factory=list)
    heard: list[Heard] = field(default_factory=list)
    rejected: list[tuple[Clip, Rejected]] = field(default_factory=list)


def hear_all(encoder: Encoder, clips: Iterable[Clip]) -> Gallery:
    """Hear every clip once."""
    gallery = Gallery()
    for clip in clips:
        try:
            with open_recording(clip.path, MAX_DURATION_S) as recording:
                heard = encoder.hear(recording.windows())
        except Rejected as error:
            gallery.rejected.append((clip, error))
        else:
            gallery.clips.append(clip)
            gallery.heard.append(heard)
    return gallery


def evaluate(
    encoder: Encoder, gallery: Gallery, queries: Sequence[Query], blank: float = 0.0, seed: int = 0
) -> dict[str, Metrics]:
    """Score audio only, metadata only and both, against the same queries.

    ``blank`` is the share of clips, chosen by ``seed``, whose metadata is taken away in every row.
    Raises ``ConfigurationError`` when a query means a sound that the gallery does not hold.
    """
    held = {clip.identity for clip in gallery.clips}
    if lacking := [query for query in queries if query.identity not in held]:
        raise ConfigurationError(f"no clip of {lacking[0].identity!r} could be heard")
    texts = [query.text for query in queries]
    asked = _in_batches(lambda rows: encoder.read([texts[row] for row in rows]), len(texts))
    rows = _systems(encoder, gallery, _texts(gallery.clips, blank, seed))
    relevant = _relevance(queries, gallery.clips)
    return {
        name: score(torch.nn.functional.normalize(asked) @ items.T, relevant)
        for name, items in rows.items()
    }


def _texts(clips: Sequence[Clip], blank: float, seed: int) -> list[str]:
    order = list(range(len(clips)))
    random.Random(seed).shuffle(order)  # noqa: S311 - chooses what to blank, guards nothing
    blanked = set(order[: round(blank * len(clips))])
    return ["" if row in blanked else clip.metadata.text for row, clip in enumerate(clips)]


def _systems(encoder: Encoder, gallery: Gallery, texts: Sequence[str]) -> dict[str, Tensor]:
    def fuse(rows: list[int], metadata: Sequence[str]) -> Tensor:
        heard = Heard.stack([gallery.heard[row] for row in rows])
        return encoder.fuse(heard, [metadata[row] for row in rows]).vectors

    count, nothing = len(texts), [""] * len(texts)
    words = _in_batches(lambda rows: encoder.read_metadata([texts[row] for row in rows]), count)
    words = torch.nn.functional.normalize(words)
    words[[not text for text in texts]] = 0  # no metadata: nothing to find it by
    return {
        "audio only": _in_batches(lambda rows: fuse(rows, nothing), count),
        "metadata only": words,
        "hybrid": _in_batches(lambda rows: fuse(rows, texts), count),
    }


def _in_batches(encode: Callable[[list[int]], Tensor], count: int) -> Tensor:
    starts = range(0, count, ROWS_PER_BATCH)
    return torch.cat([encode(list(range(s, min(s + ROWS_PER_BATCH, count)))) for s in starts])


def _relevance(queries: Sequence[Query], clips: Sequence[Clip]) -> Tensor:
    return torch.tensor([[q.identity == clip.identity for clip in clips] for q in queries])


def score(similarity: Tensor, relevant: Tensor) -> Metrics:
    """Score a ranking, given similarities and relevance, both ``(queries, items)``.

    AP@10 sums the precision at each relevant item among the first ten and divides by the number
    that could be there; R@k is the share of queries' relevant items among the first k.
    Items of equal similarity keep the gallery's order.
    """
    top = similarity.argsort(dim=1, descending=True, stable=True)[:, :CUTOFF]
    hits = relevant.gather(1, top).double()
    wanted = relevant.sum(1).double()
    ranks = torch.arange(1, top.shape[1] + 1, dtype=torch.double)
    precision = hits.cumsum(1) / ranks
    average_precision = (precision * hits).sum(1) / wanted.clamp(max=CUTOFF)
    recall = {k: float((hits[:, :k].sum(1) / wanted).mean()) for k in RECALLS}
    return Metrics(float(average_precision.mean()), recall)
