"""From windows to one clip: how their embeddings are added up, however long the clip."""

import numpy as np

from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, WindowEmbedding
from audiofuse.core.model.config import MAX_FRAMES


class FramePooler:
    """Keeps at most ``MAX_FRAMES`` of a growing sequence, each the mean of as many steps.

    When it is full, neighbours are averaged in pairs. What is kept does not depend on how the
    sequence arrives, and memory not on how long it is.
    """

    def __init__(self, channels: int) -> None:
        """Begin with nothing."""
        self._channels = channels
        self._kept: Floats = np.zeros((0, channels), np.float32)
        self._waiting = self._kept
        self._steps_each = 1

    def add(self, steps: Floats) -> None:
        """Append time steps ``(steps, channels)``."""
        self._waiting = np.concatenate([self._waiting, steps])
        while len(self._waiting) >= self._steps_each:
            if len(self._kept) == MAX_FRAMES:
                self._kept = self._kept.reshape(-1, 2, self._channels).mean(1)
                self._steps_each *= 2
            else:
                self._take()

    def _take(self) -> None:
        room = MAX_FRAMES - len(self._kept)
        groups = min(room, len(self._waiting) // self._steps_each)
        count = groups * self._steps_each
        taken = self._waiting[:count].reshape(groups, -1, self._channels).mean(1)
        self._kept = np.concatenate([self._kept, taken])
        self._waiting = self._waiting[count:]

    def frames(self) -> Floats:
        """Return the sequence; what waits at the end and fills no whole frame is left out."""
        return self._kept


class AudioAccumulator:
    """Adds the windows of one clip up to its audio embedding; they may come in any order."""

    def __init__(self, channels: int) -> None:
        """Begin with nothing; windows have frames of ``channels``."""
        self._total: Floats = np.zeros(channels, np.float32)
        self._steps = 0
        self._pooler = FramePooler(channels)
        self._pooled = 0  # windows that the pooler has, which takes them in order
        self._early: dict[int, Floats] = {}
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
        """Return the clip's embedding, a batch of one; ``ValueError`` if no window came."""
        if not self._steps:
            msg = "a clip of no windows has no audio vector"
            raise ValueError(msg)
        pooled = (self._total / np.float32(self._steps))[None]
        if not self._has_frames:
            return AudioEmbedding(pooled)
        frames = self._pooler.frames()[None]
        return AudioEmbedding(pooled, frames, np.ones(frames.shape[:2], np.bool_))
