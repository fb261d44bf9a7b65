"""The device: one thread that owns the encoder, and makes full batches of what many threads ask.

    encode_audio(windows) ──> windows wait, by lane ──┐
                                                      ├──> the device's thread: batch after batch
    fuse(embedding, text) ──> texts wait ─────────────┘

Which windows make a batch, and when it begins, ``batches`` decides. Texts gather while one batch of
windows is encoded, and no longer; where there is no such batch they are fused at once. A batch of
texts is as cheap as its longest text, so they are sorted.
"""

import gc
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Protocol, TypeVar

import numpy as np

from audiofuse.core.audio.recording import SAMPLE_RATE, Samples
from audiofuse.core.encoder.accumulator import AudioAccumulator
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, Fused
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.runtime import DeviceLost, OutOfMemory
from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.threads import vital_thread
from audiofuse.workers.indexing.device.batches import Batches
from audiofuse.workers.indexing.device.budget import Budget
from audiofuse.workers.indexing.device.fair_lock import FairLock
from audiofuse.workers.indexing.device.measure import best_batch_s
from audiofuse.workers.indexing.device.waiting import Clip, Stats, Text, Window
from audiofuse.workers.telemetry import metrics
from audiofuse.workers.telemetry.metrics import Split, Stage
from audiofuse.workers.telemetry.names import Lane
from audiofuse.workers.telemetry.tracing import span

log = logging.getLogger(__name__)

# How many batches of decoded audio may wait. More: memory; fewer: the device may run dry.
BUFFERED_BATCHES = 8
# Texts in a batch. More are slower on a CPU: all are padded to the longest.
TEXTS_AT_ONCE = {"cpu": 16, "cuda": 64}
STUCK_S = 300.0  # a batch that takes longer never ends. Higher: the process hangs for longer
CLOSED = "the device is closed: the worker stops, or nobody wants this version any more"
Answer = TypeVar("Answer")


class _Failing(Protocol):
    """What waits for the device, and can be told that it waits in vain."""

    def fail(self, error: Exception) -> None:
        """Let whoever waits know."""


Waiting = TypeVar("Waiting", bound=_Failing)


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
        self._batches = Batches(self.batch_s)
        self._texts: list[Text] = []  # in the order in which they came
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
        """End the thread after the batch it is at; whoever waits, or asks now, is told so."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        with self._changed:
            windows = self._batches.clear()
            in_vain: list[_Failing] = [*windows, *self._texts]
            self._texts = []
        for waiting in in_vain:
            waiting.fail(Unavailable(CLOSED))
        # Whoever waits for room for a window gets it, finds this closed, and lets the next in.
        self._buffer.give_back(sum(window.length for window in windows) / SAMPLE_RATE)

    def encode_audio(self, windows: Iterable[Samples], lane: Lane) -> AudioEmbedding:
        """Encode one clip; blocks while too much audio waits, then until it is encoded.

        ``windows``: float32 samples at 32 kHz, each ``(samples,)``. Raises what encoding it alone
        raises, ``Rejected`` if it does not fit the device.
        """
        clip = Clip(AudioAccumulator(self.encoder.audio_dim))
        try:
            for window in windows:
                if clip.embedding.done():  # it failed
                    break
                self._give(clip, window, lane)
        except BaseException:
            clip.embedding.cancel()
            raise
        with self._changed:
            clip.complete = True
            clip.settle()
        return self._await(clip.embedding)

    def fuse(self, embedding: AudioEmbedding, text: str) -> tuple[Floats, np.float32]:
        """Fuse one sound with its text; return its vector ``(dim,)`` and norm."""
        with self._changed:
            if self._closed:
                raise Unavailable(CLOSED)
            asked = Text(embedding, text, self._batches.begun)
            self._texts.append(asked)
        return self._await(asked.fused)

    def _give(self, clip: Clip, samples: Samples, lane: Lane) -> None:
        length = self.encoder.audio_processor.padded_length(samples)
        self._buffer.take(length / SAMPLE_RATE)
        with self._changed:
            if self._closed:
                self._buffer.give_back(length / SAMPLE_RATE)
                raise Unavailable(CLOSED)
            now = time.monotonic()
            self._batches.add(Window(clip, clip.given, samples, lane, now, length))
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
                self._changed.wait(self._batches.patience_left_s(time.monotonic()))
        return None

    def _next(self) -> Callable[[], None] | None:
        """Choose what to do now: texts that let a batch of windows pass, such a batch, or texts."""
        gathered = bool(self._texts) and self._texts[0].since < self._batches.begun
        windows = [] if gathered else self._choose_windows()
        if windows:
            return lambda: self._encode_clips(windows)
        if self._texts:
            texts, self._texts = self._texts, []
            return lambda: self._fuse_all(texts)
        return None

    def _choose_windows(self) -> list[Window]:
        """Take the windows of the next batch; none while it is worth waiting for more.

        Nothing more comes once every thread that may ask waits for an answer, and none of them is
        about to get one; nor while all the audio waits that may.
        """
        all_wait = self._askers >= self._in_hand() and not self._texts
        nothing_more_comes = all_wait or self._buffer.exhausted
        return self._batches.choose(time.monotonic(), nothing_more_comes=nothing_more_comes)

    def _encode_clips(self, windows: list[Window]) -> None:
        started = time.perf_counter()
        wanted = [window for window in windows if not window.clip.embedding.done()]
        if wanted:
            self._by_halves(self._encode_audio, wanted)
        self._buffer.give_back(sum(window.length for window in windows) / SAMPLE_RATE)
        self._batches.took(time.perf_counter() - started)

    def _encode_audio(self, windows: list[Window]) -> None:
        with metrics.timed(Stage.ENCODE):
            encoded = self.encoder.encode_windows([window.samples for window in windows])
        with self._changed:
            for window, sums in zip(windows, encoded, strict=True):
                window.clip.accumulator.add(window.number, sums)
                window.clip.done += 1
                window.clip.settle()
        self._count(windows)
        self._batches.grow()
        metrics.BATCH_CAPACITY.set(self._batches.bound_s)

    def _count(self, windows: list[Window]) -> None:
        length = windows[0].length
        room = max(len(windows), self._batches.room(length))
        audio_s = sum(window.samples.size for window in windows) / SAMPLE_RATE
        padded_s = len(windows) * length / SAMPLE_RATE
        self.stats.batches += 1
        self.stats.audio_s += audio_s
        self.stats.padded_s += padded_s
        self.stats.room_s += room * length / SAMPLE_RATE
        metrics.AUDIO.inc(audio_s)
        metrics.BATCH_FILL.observe(len(windows) / room)
        metrics.BATCH_PADDING.observe(1 - audio_s / padded_s)

    def _fuse_all(self, texts: list[Text]) -> None:
        shortest_first = sorted(texts, key=lambda text: len(text.text))
        at_once = TEXTS_AT_ONCE[self.encoder.device]
        for start in range(0, len(texts), at_once):
            self._by_halves(self._fuse, shortest_first[start : start + at_once])

    def _fuse(self, texts: list[Text]) -> None:
        embeddings = AudioEmbedding.stack([text.embedding for text in texts])
        with metrics.timed(Stage.FUSE):
            fused = self.encoder.fuse(embeddings, [each.text for each in texts])
        results = zip(fused.vectors, fused.norms, strict=True)
        for text, result in zip(texts, results, strict=True):
            text.fused.set_result(result)
        self.stats.texts += len(texts)
        self.stats.text_batches += 1

    def _by_halves(self, work: Callable[[list[Waiting]], None], things: list[Waiting]) -> None:
        """Work on all at once; if that fails on each half, so that a bad one fails alone."""
        error = _error_of(work, things)
        if error is None:
            return
        if isinstance(error, DeviceLost):
            raise error  # no later batch would fare better
        if isinstance(error, OutOfMemory):
            self._shrink()
        if len(things) > 1:
            metrics.BATCH_SPLITS.labels(_why_split(error)).inc()
            middle = len(things) // 2
            self._by_halves(work, things[:middle])
            self._by_halves(work, things[middle:])
        elif isinstance(error, OutOfMemory):
            things[0].fail(Rejected(Reason.NO_MEMORY, f"it does not fit the device: {error}"))
        else:
            things[0].fail(error)

    def _shrink(self) -> None:
        gc.collect()
        self.encoder.runtime.free_memory()
        self._batches.shrink()
        metrics.BATCH_CAPACITY.set(self._batches.bound_s)
        log.warning("out of memory: batches of %.0f s of audio now", self._batches.bound_s)


class DeviceLane:
    """The device for messages of one lane, in an encoder's own words; for many threads."""

    def __init__(self, device: Device, lane: Lane) -> None:
        """Ask ``device`` for messages of ``lane``."""
        self._device = device
        self._lane = lane
        self.fuses_stored_audio = device.encoder.fuses_stored_audio

    def encode_audio(self, windows: Iterable[Samples]) -> AudioEmbedding:
        """Encode one clip; see ``Encoder.encode_audio``."""
        with span("encode"):
            return self._device.encode_audio(windows, self._lane)

    def fuse(self, embedding: AudioEmbedding, metadata: Sequence[str]) -> Fused:
        """Fuse one sound with its text; see ``Encoder.fuse``."""
        (text,) = metadata
        with span("fuse"):
            vector, norm = self._device.fuse(embedding, text)
        return Fused(vector[None], np.array([norm]))


def _error_of(work: Callable[[list[Waiting]], None], things: list[Waiting]) -> Exception | None:
    """Work; return what went wrong, without the frames that hold the batch's memory."""
    try:
        work(things)
    except Exception as error:  # noqa: BLE001 - its class decides what becomes of the batch
        return error.with_traceback(None)
    return None


def _why_split(error: Exception) -> Split:
    return Split.OUT_OF_MEMORY if isinstance(error, OutOfMemory) else Split.ERROR
