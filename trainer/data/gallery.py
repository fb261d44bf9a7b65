"""Audio embeddings of sounds that are in the cache."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.evaluation.evaluation import Gallery
from audiofuse.trainer.data.batches import cut
from audiofuse.trainer.data.cache import Entry, read


def encode_cached(
    encoder: Encoder, clips: Iterable[Clip], entries: Mapping[Path, Entry]
) -> Gallery:
    """Embed every clip that is in the cache; ``cache.Prepared`` tells why others are not."""
    gallery = Gallery()
    for clip in clips:
        if entry := entries.get(clip.path):
            gallery.clips.append(clip)
            gallery.embeddings.append(encoder.encode_audio(cut(read(entry, 0, entry.samples))))
    return gallery
