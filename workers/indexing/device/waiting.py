"""What waits for the device: sounds and their windows; and what it has done so far."""

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.accumulator import AudioAccumulator
from audiofuse.core.encoder.embeddings import AudioEmbedding, EncodedItem
from audiofuse.core.moments.windows import EncodedWindows
from audiofuse.workers.indexing.device.cutter import Cut, SoundCutter
from audiofuse.workers.telemetry import metrics
from audiofuse.workers.telemetry.metrics import Stage
from audiofuse.workers.telemetry.names import Lane


def nothing() -> None:
    """Do nothing."""


def nobody(_: object) -> None:
    """Tell nobody."""


@dataclass(eq=False)
class Sound:
    """A sound that is encoded window by window, then fused with its ``text``.

    One that goes ``alone`` shares no batch. ``mark`` is told when the device begins to work on it,
    and when it has worked. One with a ``cutter`` is also cut into windows; ``cuts`` wait to be
    fused, and ``take`` has them then, all of them before the answer. Stored windows that are fused
    anew are the answer themselves.
    """

    text: str
    lane: Lane
    accumulator: AudioAccumulator
    alone: bool = False
    mark: Callable[[bool], None] = nobody
    answer: "Future[EncodedItem | EncodedWindows]" = field(default_factory=Future)
    cutter: SoundCutter | None = None
    take: Callable[[EncodedWindows], object] = nobody
    cuts: list[Cut] = field(default_factory=list)
    given: int = 0  # windows
    done: int = 0
    is_whole: bool = False  # no window is to come
    embedding: AudioEmbedding | None = None  # once every window is in it
    since: int = 0  # window batches that had begun by then

    @property
    def is_heard(self) -> bool:
        """Whether every window is encoded, and nobody knows yet."""
        return self.is_whole and self.done == self.given and self.embedding is None

    def cut(self, *, all_of_it: bool = False) -> None:
        """Have the windows fused that are enough to be fused together, or ``all_of_it``."""
        if self.cutter is None:
            return
        if all_of_it:
            self.cutter.finish()
        while cut := self.cutter.take(1) if all_of_it else self.cutter.take():
            self.cuts.append(cut)

    def settle(self, encoded: EncodedItem | EncodedWindows) -> None:
        """Answer, unless nobody wants it any more."""
        with suppress(InvalidStateError):
            self.answer.set_result(encoded)

    def fail(self, stage: Stage, error: Exception) -> None:
        """Let whoever waits for it know that it cannot be done."""
        with suppress(InvalidStateError):
            self.answer.set_exception(error)
            metrics.failed(stage, error)


@dataclass(frozen=True, eq=False)
class Window:
    """A window that waits since ``since``, a monotonic time. ``length``: samples with padding.

    ``release`` is called once its samples are needed no more.
    """

    sound: Sound
    number: int
    samples: Samples
    since: float
    length: int
    release: Callable[[], None] = nothing

    @property
    def lane(self) -> Lane:
        """The lane of its sound."""
        return self.sound.lane

    @property
    def needs_frames(self) -> bool:
        """Whether its frames are needed to cut its sound."""
        cutter = self.sound.cutter
        return cutter is not None and cutter.needs(self.number, self.samples.size)


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
