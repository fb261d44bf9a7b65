"""The device: one thread that owns the encoder, and makes full batches of what many ask.

    give(sound, window) ──> windows wait, by lane ──┐
                                                    ├──> the device's thread: batch after batch
    heard, or stored  ──> texts wait ───────────────┘

A sound of several windows may be cut into moments while it is heard (``cutter``): those are fused,
and handed over, in portions.

Nobody waits in here: what is asked is answered in a future. Which windows make a batch, and when it
begins, ``batches`` decides. Texts gather while one batch of windows is encoded, and no longer;
where there is no such batch they are fused at once. A batch of texts is as cheap as its longest
text, so they are sorted.
"""

import gc
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import numpy as np

from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.encoder.accumulator import AudioAccumulator
from audiofuse.core.encoder.embeddings import (
    AudioEmbedding,
    EncodedItem,
    Floats,
    WindowEmbedding,
)
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import Unavailable
from audiofuse.core.moments.windows import Cutting, EncodedWindows
from audiofuse.core.moments.words import Words
from audiofuse.core.threads import vital_thread
from audiofuse.workers.indexing.device.batches import Batches
from audiofuse.workers.indexing.device.cutter import Cut, Piece, SoundCutter
from audiofuse.workers.indexing.device.fair_lock import FairLock
from audiofuse.workers.indexing.device.halves import Waiting, by_halves
from audiofuse.workers.indexing.device.measure import best_batch_s
from audiofuse.workers.indexing.device.waiting import Sound, Stats, Window, nobody, nothing
from audiofuse.workers.telemetry import metrics
from audiofuse.workers.telemetry.metrics import Stage
from audiofuse.workers.telemetry.names import Lane

log = logging.getLogger(__name__)

# Texts in a batch. More are slower on a CPU: all are padded to the longest.
TEXTS_AT_ONCE = {"cpu": 16, "cuda": 64}
STUCK_S = 300.0  # a batch that takes longer never ends. Higher: the process hangs for longer
CLOSED = "the device is closed: the worker stops, or nobody wants this version any more"


class Device:
    """Runs the encoder for many askers."""

    def __init__(
        self,
        encoder: Encoder,
        batch_s: float | None = None,
        in_hand: Callable[[], int] = int,
        turn: FairLock | None = None,
    ) -> None:
        """Make batches of ``batch_s`` seconds of audio, or of what proves best.

        ``in_hand`` tells how many may ask: once all wait, nothing more is coming. Encoders that
        share a processor take each other's ``turn``.
        """
        self.encoder = encoder
        self.batch_s = batch_s or best_batch_s(encoder)
        self.stats = Stats()
        self._words = Words(encoder)
        self._in_hand = in_hand
        self._turn = turn or FairLock()
        self._batches = Batches(self.batch_s, few_shapes=encoder.runtime.few_shapes)
        self._alone: deque[Window] = deque()  # windows that share no batch
        self._heard: list[Sound] = []  # to be fused, in the order in which they came
        self._changed = threading.Condition()
        self._askers = 0  # sounds that are waited for, with nothing of them to come
        self._closed = False
        self._busy_since = math.inf  # a monotonic time
        self._thread = vital_thread("device", self._run)

    @property
    def askers(self) -> int:
        """How many wait for an answer, and will give nothing more before."""
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
            windows, self._alone = [*self._batches.clear(), *self._alone], deque()
            sounds, self._heard = self._heard, []
        for sound in {*sounds, *(window.sound for window in windows)}:
            sound.fail(Stage.ENCODE, Unavailable(CLOSED))
        for window in windows:
            window.release()

    def begin(
        self,
        text: str,
        lane: Lane,
        *,
        alone: bool = False,
        mark: Callable[[bool], None] = nobody,
        cutting: Cutting | None = None,
    ) -> Sound:
        """Return a sound that is to be given windows, and then to be fused with ``text``.

        Its ``answer`` raises what encoding it alone raises, ``Rejected`` if it does not fit. If it
        is to be cut, its moments are handed over before.
        """
        sound = Sound(text, lane, AudioAccumulator(self.encoder.audio_dim), alone, mark)
        if cutting:
            keeps_frames = self.encoder.config.fusion == "mid"
            sound.cutter = SoundCutter(cutting.grid, keeps_frames=keeps_frames)
            sound.take = cutting.take
        return sound

    def give(self, sound: Sound, samples: Samples, release: Callable[[], None] = nothing) -> None:
        """Have a sound's next window encoded: float32 at 32 kHz, ``(samples,)``.

        ``release`` is called once the samples are needed no more.
        """
        length = self.encoder.audio_processor.padded_length(samples)
        with self._changed:
            is_open = not self._closed
            if is_open:
                window = Window(sound, sound.given, samples, time.monotonic(), length, release)
                sound.given += 1
                if sound.alone:
                    self._alone.append(window)
                else:
                    self._batches.add(window)
                self._changed.notify()
        if not is_open:
            release()
            sound.fail(Stage.ENCODE, Unavailable(CLOSED))

    def end(self, sound: Sound) -> None:
        """Know that a sound has no more windows; it is answered once they are encoded."""
        if not sound.given:
            sound.fail(Stage.ENCODE, ValueError("a sound of no windows has no audio vector"))
        self._await(sound)
        with self._changed:
            sound.is_whole = True
            self._fuse_if_heard(sound)
            self._changed.notify()

    def fuse(
        self,
        audio: Floats,
        text: str,
        lane: Lane,
        *,
        alone: bool = False,
        mark: Callable[[bool], None] = nobody,
    ) -> Sound:
        """Fuse a stored audio vector ``(audio_dim,)`` with a text.

        Those of a recording's windows, ``(windows, audio_dim)``, are fused as such.
        """
        sound = self.begin(text, lane, alone=alone, mark=mark)
        stored = AudioEmbedding(np.atleast_2d(audio))
        if audio.ndim > 1:
            sound.cuts.append(Cut(0, np.zeros((0, 2)), stored))
            sound.take = sound.settle
        self._await(sound)
        with self._changed:
            is_open = not self._closed
            if is_open:
                self._fuse_later(sound, stored)
                self._changed.notify()
        if not is_open:
            sound.fail(Stage.FUSE, Unavailable(CLOSED))
        return sound

    def _fuse_if_heard(self, sound: Sound) -> None:
        if sound.is_heard and sound.given:
            sound.cut(all_of_it=True)
            self._fuse_later(sound, sound.accumulator.embedding())

    def _fuse_later(self, sound: Sound, embedding: AudioEmbedding) -> None:
        sound.embedding, sound.since = embedding, self._batches.begun
        self._heard.append(sound)

    def _await(self, sound: Sound) -> None:
        """Count who waits, until it is answered: the asker itself may need a while to wake up."""
        with self._changed:
            self._askers += 1
        sound.answer.add_done_callback(self._answered)

    def _answered(self, _: object) -> None:
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
        gathered = bool(self._heard) and self._heard[0].since < self._batches.begun
        if not gathered and self._alone:
            return partial(self._encode_all, [self._alone.popleft()])
        windows = [] if gathered else self._choose_windows()
        if windows:
            return partial(self._encode_all, windows)
        if self._heard:
            sounds, self._heard = self._heard, []
            return partial(self._fuse_all, sounds)
        return None

    def _choose_windows(self) -> list[Window]:
        """Take the windows of the next batch; none while it is worth waiting for more.

        Nothing more comes once all that may ask wait for an answer, and none of them is about to
        get one.
        """
        all_wait = self._askers >= self._in_hand() and not self._heard
        return self._batches.choose(time.monotonic(), nothing_more_comes=all_wait)

    def _encode_all(self, windows: list[Window]) -> None:
        started = time.perf_counter()
        wanted = [window for window in windows if not window.sound.answer.done()]
        if wanted:
            self._work(Stage.ENCODE, self._encode, wanted)
        for window in windows:
            window.release()
        for sound in {window.sound for window in wanted}:
            self._fuse_cuts(sound)
        self._batches.took(time.perf_counter() - started)

    def _encode(self, windows: list[Window]) -> None:
        with metrics.timed(Stage.ENCODE):
            encoded = self._hear(windows)
        with self._changed:
            for window, embedding in zip(windows, encoded, strict=True):
                self._take_in(window, embedding)
                window.sound.done += 1
                self._fuse_if_heard(window.sound)
        self._count(windows)
        self._batches.grow()
        metrics.BATCH_CAPACITY.set(self._batches.bound_s)

    def _hear(self, windows: list[Window]) -> list[WindowEmbedding]:
        needed = any(window.needs_frames for window in windows)
        encode = self.encoder.encode_frames if needed else self.encoder.encode_windows
        return encode([window.samples for window in windows])

    def _take_in(self, window: Window, embedding: WindowEmbedding) -> None:
        """Add a window to its sound's item, and to its moments."""
        sound = window.sound
        if sound.cutter and window.needs_frames and embedding.frames is not None:
            heard = self.encoder.audio_processor.heard_length(window.samples)
            sound.cutter.add(window.number, Piece(window.samples.size, heard, embedding.frames))
            sound.cut()
        if self.encoder.config.fusion != "mid":  # others would average frames for nothing
            embedding = WindowEmbedding(embedding.total, embedding.steps)
        sound.accumulator.add(window.number, embedding)

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

    def _fuse_cuts(self, sound: Sound) -> None:
        """Fuse what was cut of a sound, and hand it over."""
        with self._changed:
            cuts, sound.cuts = sound.cuts, []
        for cut in cuts:
            if not sound.answer.done():
                self._work(Stage.FUSE, partial(self._fuse_cut, cut), [sound])

    def _fuse_cut(self, cut: Cut, sounds: list[Sound]) -> None:
        (sound,) = sounds
        with metrics.timed(Stage.FUSE):
            fused = self._words.fuse(cut.audio, [sound.text] * len(cut.audio.pooled))
        sound.take(EncodedWindows(cut.first, cut.spans, cut.audio.pooled, fused))

    def _fuse_all(self, sounds: list[Sound]) -> None:
        for sound in sounds:
            self._fuse_cuts(sound)
        wanted = [sound for sound in sounds if not sound.answer.done()]
        shortest_first = sorted(wanted, key=lambda sound: (sound.alone, len(sound.text)))
        shared = sum(not sound.alone for sound in wanted)
        at_once = TEXTS_AT_ONCE[self.encoder.device]
        for start in range(0, shared, at_once):
            some = shortest_first[start : min(start + at_once, shared)]
            self._work(Stage.FUSE, self._fuse, some)
        for sound in shortest_first[shared:]:
            self._work(Stage.FUSE, self._fuse, [sound])

    def _fuse(self, sounds: list[Sound]) -> None:
        embeddings = AudioEmbedding.stack([each.embedding for each in sounds if each.embedding])
        with metrics.timed(Stage.FUSE):
            fused = self._words.fuse(embeddings, [sound.text for sound in sounds])
        for sound, audio, item, norm in zip(
            sounds, embeddings.pooled, fused.vectors, fused.norms, strict=True
        ):
            sound.settle(EncodedItem(audio, item, float(norm)))
        self.stats.texts += len(sounds)
        self.stats.text_batches += 1

    def _work(
        self, stage: Stage, work: Callable[[list[Waiting]], None], things: list[Waiting]
    ) -> None:
        by_halves(stage, work, things, self._shrink)

    def _shrink(self) -> None:
        gc.collect()
        self.encoder.runtime.free_memory()
        self._batches.shrink()
        metrics.BATCH_CAPACITY.set(self._batches.bound_s)
        log.warning("out of memory: batches of %.0f s of audio now", self._batches.bound_s)
