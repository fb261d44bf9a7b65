"""From windows to one clip: how their embeddings are added up."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from audiofuse.core.encoder.fusion import AudioEmbedding, FramePooler


@dataclass(frozen=True)
class WindowEmbedding:
    """One window's embedding, on the CPU: the sum over its ``steps``, float32 ``(channels,)``.

    ``frames`` ``(steps, channels)`` are kept for mid fusion only.
    """

    total: Tensor
    steps: int
    frames: Tensor | None = None


class AudioAccumulator:
    """Adds the windows of one clip up to its audio embedding; they may come in any order."""

    def __init__(self, channels: int) -> None:
        """Begin with nothing; windows have frames of ``channels``."""
        self._total = torch.zeros(channels)
        self._steps = 0
        self._pooler = FramePooler(channels, self._total.device)
        self._pooled = 0  # windows that the pooler has, which takes them in order
        self._early: dict[int, Tensor] = {}
        self._has_frames = False

    def add(self, number: int, window: WindowEmbedding) -> None:
        """Add the clip's window ``number``, counted from 0."""
        self._total += window.total
        self._steps += window.steps
        if window.frames is None:
            return
        self._has_frames = True
        self._early[number] = window.frames
        while self._pooled in self._early:
            self._pooler.add(self._early.pop(self._pooled))
            self._pooled += 1

    def embedding(self) -> AudioEmbedding:
        """Return what ``encode_audio`` returns of the same windows; ``ValueError`` if none came."""
        if not self._steps:
            msg = "a clip of no windows has no audio vector"
            raise ValueError(msg)
        pooled = (self._total / self._steps).unsqueeze(0)
        if not self._has_frames:
            return AudioEmbedding(pooled)
        return AudioEmbedding(pooled, *pad_frames([self._pooler.frames()]))


def pad_frames(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad sequences ``(steps, channels)`` to the longest; also return which steps are theirs."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    valid = torch.arange(int(lengths.max())) < lengths[:, None]
    return pad_sequence(sequences, batch_first=True), valid.to(sequences[0].device)
