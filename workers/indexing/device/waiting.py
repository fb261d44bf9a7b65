"""What waits for the device: clips, their windows, texts; and what it has done so far."""

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from audiofuse.core.audio.recording import Samples
from audiofuse.core.encoder.accumulator import AudioAccumulator
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats
from audiofuse.workers.telemetry import metrics
from audiofuse.workers.telemetry.metrics import Stage
from audiofuse.workers.telemetry.names import Lane


@dataclass
class Clip:
    """A clip that is being encoded, window by window."""

    accumulator: AudioAccumulator
    embedding: Future[AudioEmbedding] = field(default_factory=Future)
    given: int = 0  # windows
    done: int = 0
    complete: bool = False  # no window is to come

    def settle(self) -> None:
        """Tell the embedding once every window is in it."""
        if self.complete and self.done == self.given and not self.embedding.done():
            self.embedding.set_result(self.accumulator.embedding())

    def fail(self, error: Exception) -> None:
        """Let whoever waits for the clip know that it cannot be encoded."""
        if not self.embedding.done():
            metrics.failed(Stage.ENCODE, error)
            self.embedding.set_exception(error)


@dataclass(frozen=True)
class Window:
    """A window that waits since ``since``, a monotonic time. ``length``: samples with padding."""

    clip: Clip
    number: int
    samples: Samples
    lane: Lane
    since: float
    length: int

    def fail(self, error: Exception) -> None:
        """Without one window there is no clip."""
        self.clip.fail(error)


@dataclass(frozen=True)
class Text:
    """A sound that waits to be fused with its text: vector ``(dim,)`` and norm."""

    embedding: AudioEmbedding
    text: str
    since: int  # window batches that had begun when it came
    fused: Future[tuple[Floats, np.float32]] = field(default_factory=Future)

    def fail(self, error: Exception) -> None:
        """Let whoever waits know."""
        metrics.failed(Stage.FUSE, error)
        self.fused.set_exception(error)


@dataclass
class Stats:
    """What the device did so far. Seconds of audio, but for ``busy_s``."""

    batches: int = 0
    audio_s: float = 0.0
    padded_s: float = 0.0  # the same, and the padding
    room_s: float = 0.0  # what the batches could have held
    busy_s: float = 0.0
    texts: int = 0
    text_batches: int = 0

    def __str__(self) -> str:
        fill = self.padded_s / self.room_s if self.room_s else 0
        waste = 1 - self.audio_s / self.padded_s if self.padded_s else 0
        return (
            f"{self.audio_s:.0f} s of audio in {self.batches} batches, fill {fill:.3f}, "
            f"padding {waste:.3f}; {self.texts} texts in {self.text_batches}; "
            f"busy {self.busy_s:.1f} s"
        )
