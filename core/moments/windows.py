"""The windows of a recording that moments are made of, cut out of what the audio tower gives.

The tower hears 10 s at a time, as ever, and gives a sequence of frames; a window's vector is the
mean over its own frames. So moments cost no further hearing and change no item; measured in
DECISIONS.md against hearing each window by itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.encoder.accumulator import FramePooler
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, Fused
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.moments import Spans
from audiofuse.core.settings import Settings


def grid_in_force(settings: Settings, grid: Grid | None) -> Grid | None:
    """Return by which windows recordings are cut, where an encoder says ``grid``; none: not."""
    if settings.moments == "off" or grid is None:
        return None
    length = settings.moment_window_s
    return Grid(length, length) if length else grid


class Window(NamedTuple):
    """A window: where it is, in seconds, and its embedding, a batch of one."""

    start_s: float
    end_s: float
    audio: AudioEmbedding


@dataclass(frozen=True)
class EncodedWindows:
    """Some windows of one recording that follow each other, as their points hold them.

    The first has the number ``first``. ``spans`` ``(windows, 2)`` are in seconds, none of windows
    that were stored; ``audio`` is ``(windows, audio_dim)``; ``fused`` is of as many.
    """

    first: int
    spans: Spans
    audio: Floats
    fused: Fused


class Cutting(NamedTuple):
    """Into what a recording is cut while it is heard, and who takes its windows, in order."""

    grid: Grid
    take: Callable[[EncodedWindows], object]


class WindowCutter:
    """Cuts a growing sequence of frames into the windows of a ``Grid``; memory is that of two."""

    def __init__(self, grid: Grid, *, keeps_frames: bool) -> None:
        """Begin with nothing; with ``keeps_frames`` windows have frames, as mid fusion wants."""
        self._grid = grid
        self._keeps_frames = keeps_frames
        self._heard = 0  # samples
        self._number = 0  # of the next window
        self._centres = np.zeros(0)  # of the frames that wait, in seconds
        self._frames: Floats | None = None

    @property
    def duration_s(self) -> float:
        """Seconds heard so far, to the millisecond, as points have it: both count alike."""
        return round(self._heard / SAMPLE_RATE, 3)

    def add(self, samples: int, heard_length: int, frames: Floats) -> Iterator[Window]:
        """Take what the tower gave for the next ``samples``; yield windows that are complete.

        ``frames`` is ``(steps, channels)``, spread evenly over ``heard_length`` samples: the
        sound's own and the silence that is appended to it.
        """
        centres = (np.arange(len(frames)) + 0.5) / len(frames) * heard_length / SAMPLE_RATE
        self._centres = np.concatenate([self._centres, self._heard / SAMPLE_RATE + centres])
        kept = [] if self._frames is None else [self._frames]
        self._frames = np.concatenate([*kept, frames])
        self._heard += samples
        # A window is complete when the next one is certain to come: else it may take the rest.
        while self._grid.count(self.duration_s) > self._number + 1:
            yield self._cut(self._start_s + self._grid.window_s)

    def finish(self) -> Iterator[Window]:
        """Yield the last window, which takes the rest; none of a recording of one window."""
        if self._number:
            yield self._cut(self.duration_s)

    @property
    def _start_s(self) -> float:
        return self._number * self._grid.hop_s

    def _cut(self, end_s: float) -> Window:
        assert self._frames is not None
        last = end_s >= self.duration_s  # then the silence behind counts, as in an item
        inside = (self._centres >= self._start_s) & (last | (self._centres < end_s))
        own = self._frames[inside]
        audio = AudioEmbedding(own.mean(0, keepdims=True))
        if self._keeps_frames:
            pooler = FramePooler(own.shape[1])
            pooler.add(own)
            frames = pooler.frames()[None]
            audio = AudioEmbedding(audio.pooled, frames, np.ones(frames.shape[:2], np.bool_))
        window = Window(self._start_s, end_s, audio)
        self._number += 1
        waits = self._centres >= self._start_s
        self._centres, self._frames = self._centres[waits], self._frames[waits]
        return window
