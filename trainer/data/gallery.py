"""Embeddings of cached sounds, and how well an encoder finds them by one kind of metadata."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from audiofuse.core.encoder.embeddings import AudioEmbedding
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.evaluation.evaluation import Gallery, QueryScores, judge_hybrid
from audiofuse.trainer.data.batches import cut
from audiofuse.trainer.data.cache import Entry, read
from audiofuse.trainer.data.metadata import Kind, evaluation_rankings


def encode_cached(
    encoder: Encoder, clips: Iterable[Clip], entries: Mapping[Path, Entry]
) -> Gallery:
    """Embed every clip that is in the cache; ``cache.Prepared`` tells why others are not."""
    gallery = Gallery()
    for clip in clips:
        if entry := entries.get(clip.path):
            gallery.clips.append(clip)
            gallery.embeddings.append(_encode(encoder, entry))
    return gallery


def _encode(encoder: Encoder, entry: Entry) -> AudioEmbedding:
    if not encoder.config.uses_audio:
        return encoder.no_audio(1)
    return encoder.encode_audio(cut(read(entry, 0, entry.samples)))


class KindScores(NamedTuple):
    """The scores of single queries, and the identities that they mean."""

    identities: list[str]
    scores: QueryScores


def score_kind(encoder: Encoder, gallery: Gallery, split: str, kind: Kind) -> KindScores:
    """Score items that carry one kind of metadata by the queries of a split.

    Each query has the same weight, in however many rankings they come (``evaluation_rankings``).
    """
    rankings = evaluation_rankings(gallery.clips, split, kind)
    scores = [
        judge_hybrid(encoder, Gallery(each.clips, gallery.embeddings), each.queries)
        for each in rankings
    ]
    identities = [query.identity for each in rankings for query in each.queries]
    return KindScores(identities, QueryScores.concatenate(scores))
