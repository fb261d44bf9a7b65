"""The device: one thread that owns the encoder, and makes full batches of what many threads ask.

    hear(windows) ──> windows wait, by lane ──┐
                                              ├──> the device's thread: batch after batch
    fuse(heard, text) ──> texts wait ─────────┘

A batch of windows is bounded by seconds of audio, and its windows have one padded length; whose
they are does not matter. It is begun when it is full, when its oldest window has waited long
enough, or when nothing more is coming.

Texts gather while one batch of windows is heard, and no longer; where there is no batch to hear
they are read at once. A batch of texts is as cheap as its longest text, so they are sorted.
"""

import gc
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from audiofuse.core.audio.recording import SAMPLE_RATE, WINDOW_S, WINDOW_SAMPLES, Samples
from audiofuse.core.encoder.encoder import AudioAccumulator, Encoder, Fused, padded_length
from audiofuse.core.encoder.fusion import AudioEmbedding
from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.threads import vital_thread
from audiofuse.workers.indexing.device.budget import Budget
from audiofuse.workers.queue.lanes import BACKFILL_TURN
from audiofuse.workers.telemetry import metrics
from audiofuse.workers.telemetry.metrics import Split, Stage
from audiofuse.workers.telemetry.names import Lane
from audiofuse.workers.telemetry.tracing import span

log = logging.getLogger(__name__)

PATIENCE_S = {Lane.LIVE: 0.05, Lane.BACKFILL: 0.5}  # what a window waits for company
PATIENCE_BATCHES = 2  # or as long as so many batches take: under load, full ones go first
BUFFERED_BATCHES = 8  # how much audio may wait, decoded
TEXTS_AT_ONCE = {"cpu": 16, "cuda": 64}  # more are slower on a CPU: padded to the longest
SHRINK, GROW = 0.75, 1.02  # the batch, when memory did not suffice, and after each time it did
STUCK_S = 300.0
SIZES = {  # of batches, in windows, that are tried; the memory of the largest stays taken
    "cpu": (4, 8, 16),  # smaller ones cost the encoder little, but texts gather during a batch
    "cuda": (1, 2, 4, 8, 16, 32, 64, 128, 256),
}
REPEATS = 5  # of each, of which the best counts: other work only ever makes it slower
MEASURE_S = 2.0  # for all of them
NEARLY = 0.97  # of the best rate: a smaller batch that reaches it is preferred, as it waits less

Answer = TypeVar("Answer")


class _Failing(Protocol):
    """What waits for the device, and can be told that it waits in vain."""

    def fail(self, error: Exception) -> None:
        """Let whoever waits know."""


Waiting = TypeVar("Waiting", bound=_Failing)


@dataclass
class _Clip:
    """A clip that is being heard, window by window."""

    listening: AudioAccumulator
    heard: Future[AudioEmbedding] = field(default_factory=Future)
    given: int = 0  # windows
    done: int = 0
    complete: bool = False  # no window is to come

    def settle(self) -> None:
        """Tell what was heard once that is everything."""
        if self.complete and self.done == self.given and not self.heard.done():
            self.heard.set_result(self.listening.embedding())

    def fail(self, error: Exception) -> None:
        """Let whoever waits for the clip know that it cannot be heard."""
        if not self.heard.done():
            metrics.failed(Stage.ENCODE, error)
            self.heard.set_exception(error)


@dataclass(frozen=True)
class _Window:
    """A window that waits since ``since``, a monotonic time. ``length``: samples with padding."""

    clip: _Clip
    number: int
    samples: Samples
    lane: Lane
    since: float
    length: int

    def fail(self, error: Exception) -> None:
        """Without one window there is no clip."""
        self.clip.fail(error)


@dataclass(frozen=True)
class _Text:
    """A sound that waits to be fused with its text: vector ``(dim,)`` and norm ``()``."""

    heard: AudioEmbedding
    text: str
    since: int  # window batches that had begun when it came
    fused: Future[tuple[Tensor, Tensor]] = field(default_factory=Future)

    def fail(self, error: Exception) -> None:
        """Let whoever waits know."""
        metrics.failed(Stage.FUSE, error)
        self.fused.set_exception(error)


@dataclass
class Stats:
    """What the device did so far. Seconds of audio, but for ``busy_s``."""

    batches: int = 0
    heard_s: float = 0.0
    padded_s: float = 0.0  # heard, and the padding
    room_s: float = 0.0  # what the batches could have held
    busy_s: float = 0.0
    texts: int = 0
    text_batches: int = 0

    def __str__(self) -> str:
        fill = self.padded_s / self.room_s if self.room_s else 0
        waste = 1 - self.heard_s / self.padded_s if self.padded_s else 0
        return (
            f"{self.heard_s:.0f} s of audio in {self.batches} batches, fill {fill:.3f}, "
            f"padding {waste:.3f}; {self.texts} texts in {self.text_batches}; "
            f"busy {self.busy_s:.1f} s"
        )


class FairLock:
    """A lock that is fair: whoever came first goes first.

    With a plain one a thread that always has work would take it again before another wakes up.
    """

    def __init__(self) -> None:
        """Begin with nobody's turn."""
        self._changed = threading.Condition()
        self._tickets = 0
        self._turn = 0

    def __enter__(self) -> None:
        """Wait for one's turn."""
        with self._changed:
            mine, self._tickets = self._tickets, self._tickets + 1
            self._changed.wait_for(lambda: self._turn == mine)

    def __exit__(self, *_: object) -> None:
        """Let the next have its turn."""
        with self._changed:
            self._turn += 1
            self._changed.notify_all()


class Device:
    """Runs the encoder for many threads; ``on(lane)`` is what they talk to."""

    def __init__(
        self,
        encoder: Encoder,
        batch_s: float | None = None,
        in_hand: Callable[[], int] = int,
        turn: FairLock | None = None,
    ) -> None:
        """Make batches of ``batch_s`` seconds of audio, or of what proves best.

        ``in_hand`` tells how many threads may ask: once all wait, nothing more is coming. Encoders
        that share a processor take each other's ``turn``.
        """
        self.encoder = encoder
        self.batch_s = batch_s or best_batch_s(encoder)
        self.stats = Stats()
        self._in_hand = in_hand
        self._turn = turn or FairLock()
        self._batch_now_s = self.batch_s
        self._last_batch_s = 0.0
        self._windows: dict[Lane, deque[_Window]] = {lane: deque() for lane in Lane}
        self._waiting_samples = Counter[int]()  # by padded length
        self._begun = 0  # batches of windows
        self._texts: list[_Text] = []  # in the order in which they came
        self._buffer = Budget(BUFFERED_BATCHES * self.batch_s)
        self._changed = threading.Condition()
        self._askers = 0  # threads that wait for an answer
        self._closed = False
        self._busy_since = math.inf  # a monotonic time
        self._thread = vital_thread("device", self._run)

    def on(self, lane: Lane) -> "DeviceLane":
        """Return the device for messages of one lane."""
        return DeviceLane(self, lane)

    @property
    def askers(self) -> int:
        """How many threads wait for an answer."""
        return self._askers

    @property
    def stuck(self) -> bool:
        """Whether one batch takes so long that it will never end."""
        return time.monotonic() - self._busy_since > STUCK_S

    def close(self) -> None:
        """End the thread after the batch it is at; who still waits is never answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def encode_audio(self, windows: Iterable[Samples], lane: Lane) -> AudioEmbedding:
        """Hear one clip; blocks while too much audio waits, then until the clip is heard."""
        clip = _Clip(AudioAccumulator(self.encoder.audio_dim))
        try:
            for window in windows:
                if clip.heard.done():  # it failed
                    break
                self._give(clip, window, lane)
        except BaseException:
            clip.heard.cancel()
            raise
        with self._changed:
            clip.complete = True
            clip.settle()
        return self._await(clip.heard)

    def fuse(self, heard: AudioEmbedding, text: str) -> tuple[Tensor, Tensor]:
        """Fuse one sound with its text; return its vector ``(dim,)`` and norm ``()``."""
        with self._changed:
            asked = _Text(heard, text, self._begun)
            self._texts.append(asked)
        return self._await(asked.fused)

    def _give(self, clip: _Clip, samples: Samples, lane: Lane) -> None:
        length = padded_length(samples)
        self._buffer.take(length / SAMPLE_RATE)
        with self._changed:
            now = time.monotonic()
            self._windows[lane].append(_Window(clip, clip.given, samples, lane, now, length))
            self._waiting_samples[length] += length
            clip.given += 1
            self._changed.notify()

    def _await(self, answer: "Future[Answer]") -> Answer:
        with self._changed:
            if not answer.done():
                self._askers += 1
                answer.add_done_callback(self._answered)
            self._changed.notify()
        return answer.result()

    def _answered(self, _: object) -> None:
        """Count at once: the asker itself may need a while to wake up."""
        with self._changed:
            self._askers -= 1

    def _run(self) -> None:
        while work := self._await_work():
            with self._turn:
                self._busy_since = time.monotonic()
                work()
                busy_s = time.monotonic() - self._busy_since
                self.stats.busy_s += busy_s
                metrics.DEVICE_BUSY.inc(busy_s)
                self._busy_since = math.inf

    def _await_work(self) -> Callable[[], None] | None:
        """Return what to do next, when it is time; ``None`` when closed."""
        with self._changed:
            while not self._closed:
                if work := self._next():
                    return work
                self._changed.wait(self._patience_left())
        return None

    def _next(self) -> Callable[[], None] | None:
        """Choose what to do now: texts that let a batch of windows pass, such a batch, or texts."""
        waited = bool(self._texts) and self._texts[0].since < self._begun
        windows = [] if waited else self._next_windows()
        if windows:
            self._begun += 1
            return lambda: self._encode_clips(windows)
        if self._texts:
            texts, self._texts = self._texts, []
            return lambda: self._fuse_all(texts)
        return None

    def _next_windows(self) -> list[_Window]:
        """Take the windows of the next batch; none while it is worth waiting for more."""
        first = self._first_lane()
        lanes = sorted(Lane, key=lambda lane: lane is not first)
        heads = [self._windows[lane][0] for lane in lanes if self._windows[lane]]
        room = self._batch_now_s * SAMPLE_RATE
        backfills_turn = [head.length for head in heads if head.lane is first is Lane.BACKFILL]
        due = [head.length for head in heads if self._left_s(head) <= 0]
        full = [n for n, waiting in self._waiting_samples.items() if waiting > max(0, room - n)]
        at_last = [head.length for head in heads if self._nothing_more_comes()]
        for length in (*backfills_turn, *due, *full, *at_last):
            return self._take(length, lanes, max(1, int(room // length)))
        return []

    def _first_lane(self) -> Lane:
        return Lane.LIVE if (self.stats.batches + 1) % BACKFILL_TURN else Lane.BACKFILL

    def _nothing_more_comes(self) -> bool:
        all_wait = self._askers >= self._in_hand() and not self._texts  # their threads bring more
        return all_wait or self._buffer.exhausted

    def _take(self, length: int, lanes: Sequence[Lane], room: int) -> list[_Window]:
        """Take up to ``room`` windows of one padded length, the lanes in their order."""
        taken: list[_Window] = []
        for lane in lanes:
            kept: deque[_Window] = deque()
            for window in self._windows[lane]:
                fits = window.length == length and len(taken) < room
                (taken if fits else kept).append(window)
            self._windows[lane] = kept
        self._waiting_samples[length] -= len(taken) * length
        return taken

    def _left_s(self, window: _Window) -> float:
        patience_s = max(PATIENCE_S[window.lane], PATIENCE_BATCHES * self._last_batch_s)
        return window.since + patience_s - time.monotonic()

    def _patience_left(self) -> float | None:
        """Return in how many seconds a window that waits must be heard, alone or not."""
        heads = [queue[0] for queue in self._windows.values() if queue]
        return max(0.0, min(map(self._left_s, heads))) if heads else None

    def _encode_clips(self, windows: list[_Window]) -> None:
        started = time.perf_counter()
        wanted = [window for window in windows if not window.clip.heard.done()]
        if wanted:
            self._by_halves(self._encode_audio, wanted)
        self._buffer.give_back(sum(window.length for window in windows) / SAMPLE_RATE)
        self._last_batch_s = time.perf_counter() - started

    def _encode_audio(self, windows: list[_Window]) -> None:
        with metrics.timed(Stage.ENCODE):
            heard = self.encoder.encode_windows([window.samples for window in windows])
        with self._changed:
            for window, sums in zip(windows, heard, strict=True):
                window.clip.listening.add(window.number, sums)
                window.clip.done += 1
                window.clip.settle()
        self._count(windows)
        self._batch_now_s = min(self.batch_s, self._batch_now_s * GROW)
        metrics.BATCH_CAPACITY.set(self._batch_now_s)

    def _count(self, windows: list[_Window]) -> None:
        length = windows[0].length
        room = max(1, len(windows), int(self._batch_now_s * SAMPLE_RATE // length))
        heard_s = sum(window.samples.size for window in windows) / SAMPLE_RATE
        padded_s = len(windows) * length / SAMPLE_RATE
        self.stats.batches += 1
        self.stats.heard_s += heard_s
        self.stats.padded_s += padded_s
        self.stats.room_s += room * length / SAMPLE_RATE
        metrics.AUDIO.inc(heard_s)
        metrics.BATCH_FILL.observe(len(windows) / room)
        metrics.BATCH_PADDING.observe(1 - heard_s / padded_s)

    def _fuse_all(self, texts: list[_Text]) -> None:
        shortest_first = sorted(texts, key=lambda text: len(text.text))
        at_once = TEXTS_AT_ONCE[self.encoder.device.type]
        for start in range(0, len(texts), at_once):
            self._by_halves(self._fuse, shortest_first[start : start + at_once])

    def _fuse(self, texts: list[_Text]) -> None:
        heard = AudioEmbedding.stack([text.heard for text in texts])
        with metrics.timed(Stage.FUSE):
            fused = self.encoder.fuse(_moved(heard, self.encoder.device), [t.text for t in texts])
            results = zip(fused.vectors.cpu(), fused.norms.cpu(), strict=True)
        for text, result in zip(texts, results, strict=True):
            text.fused.set_result(result)
        self.stats.texts += len(texts)
        self.stats.text_batches += 1

    def _by_halves(self, work: Callable[[list[Waiting]], None], things: list[Waiting]) -> None:
        """Work on all at once; if that fails on each half, so that a bad one fails alone."""
        error = _error_of(work, things)
        if error is None:
            return
        if isinstance(error, torch.AcceleratorError):
            raise error  # no later batch would fare better
        if isinstance(error, torch.OutOfMemoryError):
            self._shrink()
        if len(things) > 1:
            metrics.BATCH_SPLITS.labels(_why_split(error)).inc()
            middle = len(things) // 2
            self._by_halves(work, things[:middle])
            self._by_halves(work, things[middle:])
        elif isinstance(error, torch.OutOfMemoryError):
            things[0].fail(Rejected(Reason.NO_MEMORY, f"it does not fit the device: {error}"))
        else:
            things[0].fail(error)

    def _shrink(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        self._batch_now_s = max(WINDOW_S, self._batch_now_s * SHRINK)
        metrics.BATCH_CAPACITY.set(self._batch_now_s)
        log.warning("out of memory: batches of %.0f s of audio now", self._batch_now_s)


class DeviceLane:
    """The device for messages of one lane, in an encoder's own words; for many threads."""

    def __init__(self, device: Device, lane: Lane) -> None:
        """Ask ``device`` for messages of ``lane``."""
        self._device = device
        self._lane = lane
        self.fuses_stored_audio = device.encoder.fuses_stored_audio
        self.device = torch.device("cpu")  # where what was heard is kept between hear and fuse

    def encode_audio(self, windows: Iterable[Samples]) -> AudioEmbedding:
        """Hear one clip; see ``Encoder.encode_audio``."""
        with span("encode"):
            return self._device.encode_audio(windows, self._lane)

    def fuse(self, heard: AudioEmbedding, metadata: Sequence[str]) -> Fused:
        """Fuse one sound with its text; see ``Encoder.fuse``."""
        (text,) = metadata
        with span("fuse"):
            vector, norm = self._device.fuse(heard, text)
        return Fused(vector.unsqueeze(0), norm.unsqueeze(0))


def best_batch_s(encoder: Encoder) -> float:
    """Measure which batch of whole windows is worth its size; return it in seconds of audio.

    That is the smallest that is nearly as fast as the fastest. Sizes are tried round after round,
    so that a busy moment of the machine does not decide between them.
    """
    noise = np.random.default_rng(0).random(WINDOW_SAMPLES, np.float32)
    encoder.encode_windows([noise])  # warms up
    deadline = time.monotonic() + MEASURE_S
    rates: dict[int, float] = {}  # windows a second, by windows in a batch
    for size in SIZES[encoder.device.type] * REPEATS:
        started = time.monotonic()
        if rates and started + size / max(rates.values()) > deadline:
            continue
        with suppress(torch.OutOfMemoryError):
            encoder.encode_windows([noise] * size)
            rates[size] = max(rates.get(size, 0), size / (time.monotonic() - started))
    enough = NEARLY * max(rates.values(), default=0)
    return float(WINDOW_S) * min((n for n, rate in rates.items() if rate >= enough), default=1)


def _error_of(work: Callable[[list[Waiting]], None], things: list[Waiting]) -> Exception | None:
    """Work; return what went wrong, without the frames that hold the batch's memory."""
    try:
        work(things)
    except Exception as error:  # noqa: BLE001 - its class decides what becomes of the batch
        return error.with_traceback(None)
    return None


def _why_split(error: Exception) -> Split:
    return Split.OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else Split.ERROR


def _moved(heard: AudioEmbedding, device: torch.device) -> AudioEmbedding:
    rest = (None if part is None else part.to(device) for part in (heard.frames, heard.valid))
    return AudioEmbedding(heard.pooled.to(device), *rest)
