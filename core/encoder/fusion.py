"""How an item's audio and metadata become one vector: the fusions of arXiv 2406.15897.

Every fusion maps what both towers return for a batch of items to vectors ``(items, dim)`` that are
not normalised. Items without metadata take part too: ``TextTokens.present`` tells them apart.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

MAX_FRAMES = 192  # 60 s; the authors' longest sequence. Longer sounds are averaged down to it
AUDIO_TOKEN_STD = 0.04  # authors' code default


class MidShape(BaseModel):
    """Shape of the mid-level transformer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layers: int = Field(default=2, ge=1)
    width: int = Field(default=768, gt=0, multiple_of=2)
    heads: int = Field(default=12, ge=1)
    feedforward: int = Field(default=2048, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)


@dataclass(frozen=True)
class AudioEmbedding:
    """Sounds of a batch: pooled ``(items, channels)``, and for mid fusion their frames.

    ``frames`` is ``(items, steps, channels)``; ``valid`` tells steps from padding.
    """

    pooled: Tensor
    frames: Tensor | None = None
    valid: Tensor | None = None

    @classmethod
    def stack(cls, sounds: Sequence[Self]) -> Self:
        """Join batches, their frames padded to the longest."""
        pooled = torch.cat([sound.pooled for sound in sounds])
        frames = [row for sound in sounds if sound.frames is not None for row in sound.frames]
        valid = [row for sound in sounds if sound.valid is not None for row in sound.valid]
        if not frames:
            return cls(pooled)
        return cls(pooled, pad_sequence(frames, True), pad_sequence(valid, True))  # noqa: FBT003


@dataclass(frozen=True)
class TextTokens:
    """Metadata of a batch: ``tokens`` ``(items, length, hidden)``, ``valid``, ``present``."""

    tokens: Tensor
    valid: Tensor
    present: Tensor


class FramePooler:
    """Keeps at most ``MAX_FRAMES`` of a growing sequence, each the mean of as many steps.

    When it is full, neighbours are averaged in pairs. What is kept does not depend on how the
    sequence arrives, and memory not on how long it is.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        """Begin with nothing."""
        self._channels = channels
        self._kept = torch.zeros(0, channels, device=device)
        self._waiting = self._kept
        self._steps_each = 1

    def add(self, steps: Tensor) -> None:
        """Append time steps ``(steps, channels)``."""
        self._waiting = torch.cat([self._waiting, steps])
        while len(self._waiting) >= self._steps_each:
            if len(self._kept) == MAX_FRAMES:
                self._kept = self._kept.view(-1, 2, self._channels).mean(1)
                self._steps_each *= 2
            else:
                self._take()

    def _take(self) -> None:
        room = MAX_FRAMES - len(self._kept)
        groups = min(room, len(self._waiting) // self._steps_each)
        count = groups * self._steps_each
        taken = self._waiting[:count].view(groups, -1, self._channels).mean(1)
        self._kept = torch.cat([self._kept, taken])
        self._waiting = self._waiting[count:]

    def frames(self) -> Tensor:
        """Return the sequence; what waits at the end and fills no whole frame is left out."""
        return self._kept


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

    def forward(self, audio: AudioEmbedding, text: TextTokens) -> Tensor:
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
        return self.project(out[torch.arange(len(out)), valid.int().argmax(1)])  # type: ignore[no-any-return]


def _sinusoids(count: int, width: int) -> Tensor:
    """Return fixed positions ``(count, width)``: sines and cosines of falling frequency."""
    position = torch.arange(count).unsqueeze(1)
    rate = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    table = torch.zeros(count, width)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate)
    return table
