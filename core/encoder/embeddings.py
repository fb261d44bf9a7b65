"""What an encoder gives: embeddings of windows, of sounds and of items, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class WindowEmbedding:
    """One window's embedding: the sum over its ``steps``, float32 ``(channels,)``.

    ``frames`` ``(steps, channels)`` are kept for mid fusion, and where they are asked for.
    """

    total: Floats
    steps: int
    frames: Floats | None = None


@dataclass(frozen=True)
class AudioEmbedding:
    """Sounds of a batch: pooled ``(items, channels)``, and for mid fusion their frames.

    ``frames`` is ``(items, steps, channels)``; ``valid`` tells steps from padding.
    """

    pooled: Floats
    frames: Floats | None = None
    valid: Flags | None = None

    @classmethod
    def stack(cls, sounds: Sequence[Self]) -> Self:
        """Join batches, their frames padded to the longest."""
        pooled = np.concatenate([sound.pooled for sound in sounds])
        frames = [row for sound in sounds if sound.frames is not None for row in sound.frames]
        valid = [row for sound in sounds if sound.valid is not None for row in sound.valid]
        if not frames:
            return cls(pooled)
        return cls(pooled, _padded(frames), _padded(valid))


@dataclass(frozen=True)
class Fused:
    """Item vectors of unit length, ``(items, dim)``, and the lengths they had, ``(items,)``."""

    vectors: Floats
    norms: Floats


@dataclass(frozen=True)
class EncodedItem:
    """One sound as its point holds it.

    ``audio`` is its audio vector ``(audio_dim,)``, ``item`` its item vector of unit length
    ``(dim,)``, and ``norm`` the length that this had.
    """

    audio: Floats
    item: Floats
    norm: float


def unit(vectors: Floats) -> Floats:
    """Return vectors ``(..., dim)`` at unit length; one of zeros stays."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Floats = vectors / np.maximum(norms, np.float32(1e-12))
    return scaled


def _padded(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Join arrays that differ in their first axis, padded with zeros to the longest."""
    longest = max(map(len, rows))
    return np.stack(
        [np.pad(row, [(0, longest - len(row)), *[(0, 0)] * (row.ndim - 1)]) for row in rows]
    )
