"""A sound's windows for moments, cut while it is heard, however long it is."""

from typing import NamedTuple

import numpy as np

from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.hearing import WINDOWS_PER_FUSION
from audiofuse.core.moments.moments import Spans
from audiofuse.core.moments.windows import Window, WindowCutter


class Piece(NamedTuple):
    """What the audio tower gave for ``samples`` of a sound, of which, padded, ``heard`` count."""

    samples: int
    heard: int
    frames: Floats


class Cut(NamedTuple):
    """Windows that are to be fused together; the first has the number ``first``."""

    first: int
    spans: Spans
    audio: AudioEmbedding


class SoundCutter:
    """Puts what the tower gives of one sound in order, and cuts it; windows wait to be fused.

    A sound's last piece has another length than the others, and so may be encoded before them;
    what comes early waits, at most a batch of it.
    """

    def __init__(self, grid: Grid, *, keeps_frames: bool) -> None:
        """Cut into windows of ``grid``, which have their frames where mid fusion wants them."""
        self._grid = grid
        self._cutter = WindowCutter(grid, keeps_frames=keeps_frames)
        self._early: dict[int, Piece] = {}
        self._next = 0  # piece that is cut next
        self._waiting: list[Window] = []
        self._taken = 0

    def needs(self, number: int, samples: int) -> bool:
        """Whether the frames of a piece are needed: not of a sound that has no windows."""
        return number > 0 or self._grid.count(samples / SAMPLE_RATE) > 0

    def add(self, number: int, piece: Piece) -> None:
        """Cut a piece, and those that waited for it."""
        self._early[number] = piece
        while ready := self._early.pop(self._next, None):
            self._waiting += self._cutter.add(*ready)
            self._next += 1

    def finish(self) -> None:
        """Cut the last window; nothing more comes."""
        self._waiting += self._cutter.finish()

    def take(self, least: int = WINDOWS_PER_FUSION) -> Cut | None:
        """Take the next windows to be fused; none while fewer than ``least`` wait."""
        if len(self._waiting) < least:
            return None
        taken = self._waiting[:WINDOWS_PER_FUSION]
        del self._waiting[:WINDOWS_PER_FUSION]
        first, self._taken = self._taken, self._taken + len(taken)
        spans = np.array([(window.start_s, window.end_s) for window in taken])
        return Cut(first, spans, AudioEmbedding.stack([window.audio for window in taken]))
