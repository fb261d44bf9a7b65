"""The device makes full batches of many clips' windows, and each clip keeps its own fate."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from audiofuse.core.encoder.embeddings import (
    AudioEmbedding,
    EncodedItem,
    Floats,
    Fused,
    WindowEmbedding,
)
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.runtime import OutOfMemory
from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.model.config import TINY
from audiofuse.workers.indexing.device import batches as batches_module
from audiofuse.workers.indexing.device.device import Device
from audiofuse.workers.indexing.device.measure import best_batch_s
from audiofuse.workers.telemetry.names import Lane

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
LIVE, BACKFILL = Lane.LIVE, Lane.BACKFILL
MARK = 0.123  # how a bad window is told from others


def clip(seconds: float, seed: int = 0) -> list[Samples]:
    """Return noise in windows."""
    noise = np.random.default_rng(seed).random(int(seconds * SAMPLE_RATE), np.float32) - 0.5
    return np.split(noise, range(WINDOW_SAMPLES, noise.size, WINDOW_SAMPLES))


class Spy:
    """An encoder that notes its batches, and fails when told to."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.batches: list[list[float]] = []  # the first sample of each window
        self.texts: list[list[str]] = []
        self.done: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.memory_windows = 10**9
        self.broken = threading.Event()
        self.kept_frames = 0  # batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode_windows(self, windows: Sequence[Samples]) -> list[WindowEmbedding]:
        """Hear; not before the gate is open, and no more than fits the memory."""
        return self._hear(windows, self.encoder.encode_windows)

    def encode_frames(self, windows: Sequence[Samples]) -> list[WindowEmbedding]:
        """Hear likewise, and keep the frames."""
        self.kept_frames += 1
        return self._hear(windows, self.encoder.encode_frames)

    def _hear(
        self,
        windows: Sequence[Samples],
        encode: Callable[[Sequence[Samples]], list[WindowEmbedding]],
    ) -> list[WindowEmbedding]:
        self.gate.wait(30)
        if len(windows) > self.memory_windows:
            raise OutOfMemory("CUDA out of memory")
        if any(window[0] == np.float32(MARK) for window in windows):
            raise ValueError("a bad window")
        self.batches.append([float(window[0]) for window in windows])
        self.done.append("hear")
        return encode(windows)

    def fuse(self, heard: AudioEmbedding, metadata: Sequence[str]) -> Fused:
        """Fuse."""
        self.texts.append(list(metadata))
        self.done.append("fuse")
        return self.encoder.fuse(heard, metadata)


class Bench:
    """A device around a spy, and threads that ask it."""

    def __init__(self, encoder: Encoder, batch_s: float) -> None:
        self.spy = Spy(encoder)
        self.coming = 0
        self.device = Device(self.spy, batch_s, lambda: self.coming)  # type: ignore[arg-type]
        self.released = 0  # windows

    def encode(
        self, windows: Sequence[Samples], lane: Lane = LIVE, text: str = "", **how: Any
    ) -> "Future[EncodedItem]":
        """Give a sound with all its windows."""
        sound = self.device.begin(text, lane, **how)
        for window in windows:
            self.device.give(sound, window, self._release)
        self.device.end(sound)
        return sound.answer

    def fuse(self, audio: Floats, text: str) -> "Future[EncodedItem]":
        """Fuse a stored audio vector with a text."""
        return self.device.fuse(audio, text, LIVE).answer

    def _release(self) -> None:
        self.released += 1

    def waiting(self) -> int:
        """Return how many windows wait."""
        return len(self.device._batches)


@pytest.fixture
def bench(tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Return a device with batches of 40 s that waits for more as long as a test may last."""
    monkeypatch.setattr(batches_module, "PATIENCE_S", dict.fromkeys(Lane, 60.0))
    made = Bench(tiny_encoder, 40)
    yield made
    made.spy.gate.set()
    made.coming = 0
    with made.device._changed:
        made.device._changed.notify()
    made.device.close()


@pytest.mark.parametrize("fusion", ["late", "mid"])
def test_a_clip_is_heard_as_if_it_were_alone(fusion: str) -> None:
    """Real sounds of all lengths, heard together, get the vectors that hearing each alone gives."""
    encoder = Encoder.random(TINY.model_copy(update={"fusion": fusion}), seed=0)
    device = Device(encoder, 40)
    clips = [clip(35), clip(1.2)]
    for path in sorted(SOUNDS.rglob("*.wav")):
        with open_recording(path, 60) as recording:
            clips.append(list(recording.windows()))
    texts = [f"sound {number}" for number in range(len(clips))]
    sounds = [device.begin(text, LIVE) for text in texts]
    for sound, windows in zip(sounds, clips, strict=True):
        for window in windows:
            device.give(sound, window)
        device.end(sound)
    together = [sound.answer.result(60) for sound in sounds]
    device.close()
    for windows, text, encoded in zip(clips, texts, together, strict=True):
        alone = encoder.encode_audio(windows)
        np.testing.assert_allclose(encoded.audio, alone.pooled[0], atol=1e-5, rtol=1e-5)
        expected = encoder.fuse(alone, [text])
        np.testing.assert_allclose(encoded.item, expected.vectors[0], atol=1e-5, rtol=0)
        assert encoded.norm == pytest.approx(expected.norms[0], abs=1e-3, rel=1e-5)


def test_a_long_clip_and_short_ones_fill_the_same_batches(bench: Bench) -> None:
    """Batches are made of windows, whosever they are, and begin once they are full."""
    bench.coming = 10**9
    answers = [bench.encode(clip(60))] + [bench.encode(clip(10, seed)) for seed in range(1, 7)]
    for answer in answers:
        answer.result(30)
    assert [len(batch) for batch in bench.spy.batches] == [4, 4, 4]
    assert bench.device.stats.room_s == bench.device.stats.audio_s == 120


def test_a_batch_begins_when_nothing_more_is_coming(bench: Bench) -> None:
    """Once all that are in hand wait for the device, nobody waits for a full batch."""
    bench.coming = 3
    first = [bench.encode(clip(5, seed)) for seed in range(2)]
    with pytest.raises(TimeoutError):
        first[0].result(0.2)
    bench.encode(clip(5, 2)).result(30)
    assert [len(batch) for batch in bench.spy.batches] == [3]


def test_the_oldest_window_waits_no_longer_than_its_patience(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that does not fill begins when its oldest window has waited long enough."""
    monkeypatch.setattr(batches_module, "PATIENCE_S", {LIVE: 0.05, BACKFILL: 60.0})
    bench.coming = 10**9
    background = bench.encode(clip(3), BACKFILL)
    bench.encode(clip(5)).result(30)
    assert not background.done()


def test_live_goes_first_and_backfill_fills_the_holes(
    bench: Bench, eventually: Callable[..., Any]
) -> None:
    """Live windows that came later are heard before backfill, which takes the room that is left."""
    bench.spy.gate.clear()
    plug = bench.encode(clip(10, 99))  # keeps the device busy while others arrive
    eventually(lambda: bench.device.stuck is False and bench.waiting() == 0)
    back = [clip(10, seed) for seed in range(6)]
    answers = [bench.encode(windows, BACKFILL) for windows in back]
    eventually(lambda: bench.waiting() == 6)
    live = [clip(10, seed) for seed in range(10, 13)]
    answers += [bench.encode(windows, LIVE) for windows in live]
    eventually(lambda: bench.waiting() == 9)
    bench.spy.gate.set()
    for answer in [plug, *answers]:
        answer.result(30)
    second = bench.spy.batches[1]
    assert set(second[:3]) == {float(windows[0][0]) for windows in live}
    assert len(second) == 4


def test_backfill_has_its_turn(bench: Bench, eventually: Callable[..., Any]) -> None:
    """However much live audio waits, every tenth batch begins with backfill."""
    bench.spy.gate.clear()
    bench.encode(clip(10, 999))
    eventually(lambda: bench.waiting() == 0)
    late = bench.encode(clip(7), BACKFILL)  # shares no batch with what is live
    eventually(lambda: bench.waiting() == 1)
    windows = [window for seed in range(3) for window in clip(100, seed)]
    answers = [bench.encode([window]) for window in windows]
    eventually(lambda: bench.waiting() > 20)
    bench.device._batches.begun = 9  # the gate holds the ninth
    bench.spy.gate.set()
    late.result(30)
    assert sum(answer.done() for answer in answers) < len(answers)
    for answer in answers:
        answer.result(30)


def test_a_bad_window_fails_its_clip_alone(bench: Bench) -> None:
    """One clip of a batch that the encoder cannot take costs the others nothing."""
    bad = clip(10)
    bad[0][0] = MARK
    bench.coming = 4
    answers = [bench.encode(windows) for windows in (bad, *(clip(10, n) for n in range(3)))]
    with pytest.raises(ValueError, match="a bad window"):
        answers[0].result(30)
    for answer in answers[1:]:
        assert np.isfinite(answer.result(30).item).all()


def test_out_of_memory_halves_and_goes_on(bench: Bench) -> None:
    """A batch that does not fit is heard in parts; later ones are smaller, and grow again."""
    bench.spy.memory_windows = 2
    bench.coming = 4
    for answer in [bench.encode(clip(10, seed)) for seed in range(4)]:
        assert np.isfinite(answer.result(30).item).all()
    assert [len(batch) for batch in bench.spy.batches] == [2, 2]
    shrunk = bench.device._batches.bound_s
    assert shrunk < 40
    bench.spy.memory_windows = 100
    bench.coming = 0
    for seed in range(30):
        bench.encode(clip(1, seed)).result(30)
    assert shrunk < bench.device._batches.bound_s <= 40


def test_a_clip_that_never_fits_is_rejected(bench: Bench) -> None:
    """What does not fit the device even alone gets a verdict; the device goes on."""
    bench.spy.memory_windows = 0
    with pytest.raises(Rejected) as caught:
        bench.encode(clip(10)).result(30)
    assert caught.value.reason is Reason.NO_MEMORY
    bench.spy.memory_windows = 100
    assert bench.encode(clip(10)).result(30)


def test_a_sound_that_nobody_wants_takes_no_time(bench: Bench) -> None:
    """Windows of a sound that was cancelled are let go of, and not encoded."""
    bench.coming = 10**9
    unwanted = bench.encode(clip(10))
    unwanted.cancel()
    for answer in [bench.encode(clip(10, seed)) for seed in range(1, 4)]:
        assert answer.result(30)
    assert len(bench.spy.batches[0]) == 3
    assert bench.released == 4


def test_a_suspect_shares_no_batch(bench: Bench, eventually: Callable[..., Any]) -> None:
    """What is to go alone is encoded and fused alone, and marked while it is, like all others."""
    bench.spy.gate.clear()
    plug = bench.encode(clip(2, 9), text="plug")
    eventually(lambda: bench.device._busy_since < math.inf)
    marked: list[bool] = []
    answers = [bench.encode(clip(10, seed), text=f"{seed}") for seed in range(2)]
    answers.append(bench.encode(clip(10, 2), text="2", alone=True, mark=marked.append))
    bench.spy.gate.set()
    for answer in [plug, *answers]:
        assert answer.result(30)
    suspect = [float(clip(10, 2)[0][0])]
    assert [suspect[0] in batch for batch in bench.spy.batches].count(True) == 1
    assert suspect in bench.spy.batches
    assert ["2"] in bench.spy.texts
    assert marked == [True, False, True, False]  # the window, then the text


def test_texts_are_fused_together(
    bench: Bench, tiny_encoder: Encoder, eventually: Callable[..., None]
) -> None:
    """What waits to be fused while the device is busy is fused at once, each with its own text."""
    heard = tiny_encoder.encode_audio(clip(2)).pooled[0]
    bench.spy.gate.clear()
    plug = bench.encode(clip(10))
    eventually(lambda: bench.device._busy_since < math.inf)
    texts = [f"text {number}" for number in range(32)]
    answers = [bench.fuse(heard, text) for text in texts]
    eventually(lambda: len(bench.device._heard) == len(texts))
    bench.spy.gate.set()
    plug.result(30)
    expected = tiny_encoder.fuse(AudioEmbedding(heard[None].repeat(32, 0)), texts).vectors
    for answer, vector in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.result(30).item, vector, atol=1e-5, rtol=0)
    assert list(map(len, bench.spy.texts))[:2] == [16, 16]


def test_texts_of_a_batch_are_of_like_length(
    bench: Bench, tiny_encoder: Encoder, eventually: Callable[..., None]
) -> None:
    """What waits is sorted before it is cut into batches, so that little of them is padding."""
    heard = tiny_encoder.encode_audio(clip(2)).pooled[0]
    bench.spy.gate.clear()
    bench.encode(clip(10), text="y" * 33)
    eventually(lambda: bench.device._busy_since < math.inf)
    texts = ["x" * (length * 7 % 32 + 1) for length in range(32)]
    answers = [bench.fuse(heard, text) for text in texts]
    eventually(lambda: len(bench.device._heard) == len(texts))
    bench.spy.gate.set()
    for answer in answers:
        answer.result(30)
    fused = [text for batch in bench.spy.texts for text in batch]
    assert fused[: len(texts)] == sorted(texts)


def test_texts_let_one_full_batch_pass_and_no_more(
    bench: Bench, tiny_encoder: Encoder, eventually: Callable[..., None]
) -> None:
    """Under load texts gather while one batch of windows is heard, and then go before the next."""
    heard = tiny_encoder.encode_audio(clip(2)).pooled[0]
    bench.spy.gate.clear()
    windows = [bench.encode(clip(10, seed)) for seed in range(12)]
    bench.coming = 10**9
    eventually(lambda: bench.device._busy_since < math.inf and bench.waiting() >= 8)
    text = bench.fuse(heard, "a text")
    eventually(lambda: bench.device._heard)
    bench.spy.gate.set()
    text.result(30)
    assert bench.spy.done[:3] == ["hear", "hear", "fuse"]
    bench.coming = 0  # what is left makes no full batch
    for window in windows:
        window.result(30)


def test_a_text_does_not_wait_for_windows_that_wait(
    bench: Bench, tiny_encoder: Encoder, eventually: Callable[..., None]
) -> None:
    """While windows wait for company the device has nothing else to do, so a text is read."""
    bench.coming = 10**9
    bench.encode(clip(10))
    eventually(lambda: bench.waiting() == 1)
    bench.fuse(tiny_encoder.encode_audio(clip(2)).pooled[0], "a text").result(30)
    assert bench.spy.done == ["fuse"]


def test_a_batch_size_is_found(tiny_encoder: Encoder) -> None:
    """The size is whole windows, and never more than the device can hold."""
    spy = Spy(tiny_encoder)
    spy.memory_windows = 2
    assert best_batch_s(spy) in {10, 20}  # type: ignore[arg-type]


def test_a_device_that_closes_answers_whoever_waits(
    bench: Bench, tiny_encoder: Encoder, eventually: Callable[..., Any]
) -> None:
    """Windows and texts that wait are told so, and so is whoever asks afterwards."""
    bench.spy.gate.clear()
    under_way = bench.encode(clip(2))
    eventually(lambda: bench.device._busy_since < math.inf)
    bench.coming = 10**9
    waiting = [bench.encode(clip(3, 1)), bench.encode(clip(600, 2))]
    audio = tiny_encoder.encode_audio(clip(2)).pooled[0]
    waiting += [under_way, bench.fuse(audio, "a text")]  # heard in time, but not fused any more
    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(bench.device.close)
        eventually(lambda: bench.device._closed)
        bench.spy.gate.set()
        closing.result(30)
    waiting += [bench.encode(clip(3)), bench.fuse(audio, "late")]
    for answer in waiting:
        with pytest.raises(Unavailable, match="closed"):
            answer.result(30)
    assert bench.released == 1 + 1 + 60 + 1
