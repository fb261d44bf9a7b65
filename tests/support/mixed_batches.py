"""Batches of windows and texts of all sizes, and what a process needs in memory by then."""

from collections.abc import Iterator

import numpy as np
import psutil

from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.encoder.embeddings import AudioEmbedding
from audiofuse.core.encoder.encoder import Encoder

WORDS = ("rain", "wind", "a", "dog", "barks", "far", "away", "at", "night")
MOST_WORDS = 80


def encode_mixed(encoder: Encoder, count: int, most: int, seconds: int, seed: int = 0) -> None:
    """Encode and fuse ``count`` batches: 1 to ``most`` windows of 1 to ``seconds`` seconds each.

    The largest of all comes first, so that memory that is kept for it is taken by then.
    """
    for windows, texts in _mixed(count, most, seconds, np.random.default_rng(seed)):
        heard = encoder.encode_windows(windows)
        pooled = np.stack([each.total / each.steps for each in heard])
        encoder.fuse(AudioEmbedding(pooled), texts)


def _mixed(
    count: int, most: int, seconds: int, rng: np.random.Generator
) -> Iterator[tuple[list[Samples], list[str]]]:
    noise = rng.standard_normal(seconds * SAMPLE_RATE).astype(np.float32) / 10
    yield [noise] * most, [" ".join(rng.choice(WORDS, MOST_WORDS))] * most
    for _ in range(count - 1):
        size = int(rng.integers(1, most + 1))
        length = int(rng.integers(1, seconds + 1)) * SAMPLE_RATE
        words = [" ".join(rng.choice(WORDS, rng.integers(1, MOST_WORDS))) for _ in range(size)]
        yield [noise[:length]] * size, words


def resident_mib() -> float:
    """Return what this process has in memory, and nobody else with it."""
    return float(psutil.Process().memory_full_info().uss) / 2**20
