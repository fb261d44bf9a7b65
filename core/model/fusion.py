"""How an item's audio and metadata become one vector: the fusions of arXiv 2406.15897.

Every fusion maps what both towers return for a batch of items to vectors ``(items, dim)`` that are
not normalised. Items without metadata take part too: ``TextTokens.present`` tells them apart.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audiofuse.core.model.config import MAX_FRAMES, MidShape

AUDIO_TOKEN_STD = 0.04  # authors' code default


class AudioTensors(NamedTuple):
    """Sounds of a batch: pooled ``(items, channels)``, and for mid fusion their frames.

    ``frames`` is ``(items, steps, channels)``; ``valid`` tells steps from padding.
    """

    pooled: Tensor
    frames: Tensor | None = None
    valid: Tensor | None = None


class TextTokens(NamedTuple):
    """Metadata of a batch: ``tokens`` ``(items, length, hidden)``, ``valid``, ``present``."""

    tokens: Tensor
    valid: Tensor
    present: Tensor


def averaged_down(steps: Tensor) -> Tensor:
    """Return at most ``MAX_FRAMES`` of a sequence ``(steps, channels)``, each the mean of as many.

    The last steps, which fill no whole frame, are left out.
    """
    each = 1
    while len(steps) // each > MAX_FRAMES:
        each *= 2
    count = len(steps) // each
    return steps[: count * each].view(count, each, -1).mean(1)


class MidFusion(nn.Module):
    """A pre-norm transformer over [metadata tokens; audio token; frames + positions].

    The item is taken from the first token that is there: the first of the metadata, or the audio
    token of an item without. Sizes are the authors' code defaults but for the number of layers,
    which is not known.
    """

    positions: Tensor

    def __init__(self, channels: int, hidden: int, dim: int, shape: MidShape) -> None:
        """Fuse frames of ``channels`` with tokens of ``hidden`` into ``dim``."""
        super().__init__()
        self.frames_in = nn.Linear(channels, shape.width)
        self.tokens_in = nn.Linear(hidden, shape.width)
        self.audio_token = nn.Parameter(torch.randn(shape.width) * AUDIO_TOKEN_STD)
        self.position_weight = nn.Parameter(torch.ones(()))
        self.register_buffer("positions", _sinusoids(MAX_FRAMES, shape.width), persistent=False)
        layer = nn.TransformerEncoderLayer(
            shape.width, shape.heads, shape.feedforward, shape.dropout,
            activation="gelu", batch_first=True, norm_first=True,
        )  # fmt: skip
        self.layers = nn.TransformerEncoder(layer, shape.layers, enable_nested_tensor=False)
        self.project = nn.Linear(shape.width, dim)

    def forward(self, audio: AudioTensors, text: TextTokens) -> Tensor:
        """Return item vectors ``(items, dim)``."""
        assert audio.frames is not None
        assert audio.valid is not None
        frames = self.frames_in(audio.frames)
        weights = audio.valid.unsqueeze(-1).to(frames.dtype)
        # The mean leaves padding out, unlike the authors' code: an item must not depend on its
        # neighbours' lengths.
        mean = (frames * weights).sum(1) / weights.sum(1)
        audio_token = (self.audio_token + mean).unsqueeze(1)
        frames = frames + self.position_weight * self.positions[: frames.shape[1]]
        sequence = torch.cat([self.tokens_in(text.tokens), audio_token, frames], dim=1)
        there = text.valid & text.present.unsqueeze(1)
        valid = torch.cat([there, torch.ones_like(there[:, :1]), audio.valid], dim=1)
        out = self.layers(sequence, src_key_padding_mask=~valid)
        return self.project(out[torch.arange(out.shape[0]), valid.int().argmax(1)])  # type: ignore[no-any-return]


def _sinusoids(count: int, width: int) -> Tensor:
    """Return fixed positions ``(count, width)``: sines and cosines of falling frequency."""
    position = torch.arange(count).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table = torch.zeros(count, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    return table
