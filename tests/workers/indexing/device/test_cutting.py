"""The device cuts a sound into windows for moments while it is heard."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from audiofuse.core.encoder.embeddings import Floats, WindowEmbedding
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.model.config import TINY, Grid
from audiofuse.core.moments.hearing import hear
from audiofuse.core.moments.windows import Cutting, EncodedWindows
from audiofuse.workers.indexing.device.cutter import Piece, SoundCutter
from audiofuse.workers.indexing.device.device import Device
from audiofuse.workers.telemetry.names import Lane

GRID = Grid()


def noise(seconds: float) -> list[Samples]:
    """Return noise in windows."""
    made = np.random.default_rng(0).random(int(seconds * SAMPLE_RATE), np.float32) - 0.5
    return np.split(made, range(WINDOW_SAMPLES, made.size, WINDOW_SAMPLES))


def _cut(encoder: Encoder, windows: Sequence[Samples], text: str) -> list[EncodedWindows]:
    """Have a device cut a sound; return what was handed over before it was answered."""
    device, taken = Device(encoder, 40), list[EncodedWindows]()
    sound = device.begin(text, Lane.LIVE, cutting=Cutting(GRID, taken.append))
    for window in windows:
        device.give(sound, window)
    device.end(sound)
    sound.answer.result(60)
    before = taken.copy()
    device.close()
    assert len(before) == len(taken)
    return before


@pytest.mark.parametrize("fusion", ["late", "mid", "audio"])
@pytest.mark.parametrize("seconds", [8, 20, 333.3])
def test_windows_are_those_that_hearing_the_sound_alone_gives(fusion: str, seconds: float) -> None:
    """In order and none left out, whatever the fusion; a short last piece, too."""
    encoder = Encoder.random(TINY.model_copy(update={"fusion": fusion}), seed=0)
    windows = noise(seconds)
    got = _cut(encoder, windows, "rain")
    alone = hear(encoder, windows, "rain", GRID)
    sizes = [len(each.audio) for each in got]
    assert [each.first for each in got] == list(np.cumsum([0, *sizes[:-1]]))
    np.testing.assert_allclose(np.concatenate([each.spans for each in got]), alone.spans)
    vectors = np.concatenate([each.fused.vectors for each in got])
    np.testing.assert_allclose(vectors, alone.vectors, atol=1e-5)
    assert len(alone.spans) == GRID.count(seconds) > 0


def test_short_sounds_are_heard_as_ever(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no windows keeps no frames, and is handed over to nobody."""
    monkeypatch.delattr(Encoder, "encode_frames")
    assert _cut(tiny_encoder, noise(7.4), "rain") == []


def test_stored_windows_are_fused_anew_as_they_were(tiny_encoder: Encoder) -> None:
    """From their audio vectors alone; another text gives other vectors."""
    got = _cut(tiny_encoder, noise(30), "rain")[0]
    device = Device(tiny_encoder, 40)
    again, other = (
        device.fuse(got.audio, text, Lane.LIVE).answer.result(60) for text in ("rain", "a train")
    )
    device.close()
    assert isinstance(again, EncodedWindows)
    assert isinstance(other, EncodedWindows)
    np.testing.assert_allclose(again.fused.vectors, got.fused.vectors, atol=1e-6)
    np.testing.assert_allclose(again.fused.norms, got.fused.norms, rtol=1e-6)
    assert np.abs(other.fused.vectors - got.fused.vectors).max() > 1e-5


def _pieces(count: int) -> Iterator[Piece]:
    for number in range(count):
        frames: Floats = np.full((4, 1), number, np.float32)
        yield Piece(WINDOW_SAMPLES, WINDOW_SAMPLES, frames)


def test_pieces_out_of_order_are_cut_in_order() -> None:
    """Whatever order batches give them in."""
    cutter, pieces = SoundCutter(GRID, keeps_frames=False), list(_pieces(4))
    for number in (1, 0, 3, 2):
        cutter.add(number, pieces[number])
    cutter.finish()
    cut = cutter.take(1)
    assert cut
    assert cut.audio.pooled[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cut.spans[:, 0].tolist() == [0, 5, 10, 15, 20, 25, 30, 35]


def test_a_bad_window_fails_its_sound_alone(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that fails is heard by halves, and what was cut of the others is whole."""
    whole = Encoder.encode_frames

    def fails(self: Encoder, windows: Sequence[Samples]) -> list[WindowEmbedding]:
        if any(window[0] == np.float32(0.125) for window in windows):
            raise ValueError("a bad window")
        return whole(self, windows)

    monkeypatch.setattr(Encoder, "encode_frames", fails)
    device, taken = Device(tiny_encoder, 40), list[EncodedWindows]()
    good = device.begin("", Lane.LIVE, cutting=Cutting(GRID, taken.append))
    bad = device.begin("", Lane.LIVE, cutting=Cutting(GRID, taken.append))
    spoilt = noise(10)
    spoilt[0][0] = 0.125
    for sound, windows in ((good, noise(10)), (bad, spoilt), (good, noise(10))):
        device.give(sound, windows[0])
    device.end(good)
    device.end(bad)
    assert good.answer.result(60)
    with pytest.raises(ValueError, match="a bad window"):
        bad.answer.result(60)
    device.close()
    assert [len(each.audio) for each in taken] == [4]
