"""Decoding: every format becomes mono float32 at 32 kHz, and what is not whole is rejected."""

from pathlib import Path

import numpy as np
import psutil
import pytest
from made_sounds import encode_as, noise, tone, write_wav

from audiofuse.core.audio import recording as recording_module
from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES
from audiofuse.core.errors import Rejected

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
SUFFIXES = sorted({path.suffix for path in SOUNDS.glob("*/*")} - {".json"})
LIMIT_S = 4 * 3600.0


def _decode(path: Path, max_duration_s: float = LIMIT_S) -> np.ndarray:
    with open_recording(path, max_duration_s) as recording:
        return np.concatenate(list(recording.windows()))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_shipped_format_is_decoded(suffix: str) -> None:
    """Each example sound of the format gives finite, audible mono float32 samples."""
    for path in SOUNDS.glob(f"*/*{suffix}"):
        samples = _decode(path)
        assert (samples.dtype, samples.ndim) == (np.float32, 1)
        assert np.isfinite(samples).all()
        assert 0.01 < np.abs(samples).max() < 2


@pytest.mark.parametrize(
    ("name", "seconds", "rate", "channels"),  # as ffprobe tells them
    [
        ("animals/crickets.wav", 4.180, 22_050, 1),
        ("misc/swoosh.wav", 1.848, 44_100, 2),
        ("animals/field-recording-07.flac", 1.552, 11_025, 1),
        ("music/choir.flac", 1.572, 44_100, 2),
        ("animals/cat%20meow.mp3", 0.591, 11_025, 1),
        ("people/footsteps-2.mp3", 2.246, 44_100, 1),
        ("home/knarrende-tür.ogg", 4.923, 11_025, 1),
        ("machines/vinyl-hiss.ogg", 8.000, 44_100, 2),
        ("home/balloon scratch 100%.opus", 4.101, 48_000, 1),
        ("music/bell.opus", 6.719, 48_000, 2),
        ("machines/car-passing.m4a", 7.709, 11_025, 1),
        ("music/tabla-loop.m4a", 10.674, 44_100, 2),
    ],
)
def test_the_clip_is_as_long_as_the_file(
    name: str, seconds: float, rate: int, channels: int
) -> None:
    """No format loses or gains sound on the way, and the file's own shape is told."""
    with open_recording(SOUNDS / name, LIMIT_S) as recording:
        samples = sum(window.size for window in recording.windows())
        assert recording.duration_s == pytest.approx(seconds, abs=0.02)
        assert samples == round(recording.duration_s * SAMPLE_RATE)
        assert (recording.sample_rate, recording.channels) == (rate, channels)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (3, [3 * SAMPLE_RATE]),
        (20, [WINDOW_SAMPLES, WINDOW_SAMPLES]),
        (25, [WINDOW_SAMPLES, WINDOW_SAMPLES, 5 * SAMPLE_RATE]),
    ],
)
def test_windows_are_ten_seconds_and_together_the_whole(
    seconds: float, expected: list[int], tmp_path: Path
) -> None:
    """All windows but the last are exactly full, none is empty, and no sample is lost or moved."""
    samples = (noise(seconds) * 32767).astype("<i2")
    path = write_wav(tmp_path / "noise.wav", samples / 32767)
    with open_recording(path, LIMIT_S) as recording:
        windows = list(recording.windows())
    assert [window.size for window in windows] == expected
    np.testing.assert_array_equal(np.concatenate(windows), samples / np.float32(32768))


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_the_end(rate: int, tmp_path: Path) -> None:
    """What the resampler still holds when the file ends belongs to the clip."""
    samples = _decode(write_wav(tmp_path / "tone.wav", tone(1, 1000, rate), rate))
    assert samples.size == pytest.approx(SAMPLE_RATE, abs=1)


def test_windows_arrive_while_the_rest_is_still_to_be_decoded(tmp_path: Path) -> None:
    """Hours fit in memory: the first window is there before the end proves to be cut off."""
    path = tmp_path / "noise.flac"
    encode_as(path, noise(25), "flac")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.9)])
    arrived = []
    with (
        open_recording(path, LIMIT_S) as recording,
        pytest.raises(Rejected, match="damaged"),
    ):
        arrived.extend(window.size for window in recording.windows())
    with open_recording(path, LIMIT_S) as recording:
        assert next(recording.windows()).size == WINDOW_SAMPLES
        assert recording.duration_s < 12


@pytest.mark.parametrize("name", ["misc/swoosh.wav", "people/footsteps-2.mp3", "music/bell.opus"])
def test_samples_do_not_depend_on_how_many_are_resampled_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound decodes to the same bits frame by frame and in long stretches."""
    together = _decode(SOUNDS / name)
    monkeypatch.setattr(recording_module, "AT_ONCE", 1)
    np.testing.assert_array_equal(together, _decode(SOUNDS / name))


def test_decoding_starts_no_threads(tmp_path: Path) -> None:
    """Decoding takes the thread that asks for it and no other, however many cores there are."""
    path, me = write_wav(tmp_path / "x.wav", tone(11, rate=44_100), 44_100), psutil.Process()
    before = me.num_threads()
    with open_recording(path, LIMIT_S) as recording:
        next(recording.windows())
        assert me.num_threads() == before


def _spectrum(samples: np.ndarray) -> np.ndarray:
    """Return the amplitude at each whole hertz of a clip's middle second."""
    middle = (samples.size - SAMPLE_RATE) // 2
    return np.abs(np.fft.rfft(samples[middle : middle + SAMPLE_RATE])) * 2 / SAMPLE_RATE


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_a_stereo_tone_stays_where_it_is(rate: int, tmp_path: Path) -> None:
    """Stereo of any rate is mixed and resampled to the same tone, and nothing is added to it."""
    mono = tone(2, 1000, rate)
    spectrum = _spectrum(_decode(write_wav(tmp_path / "t.wav", np.stack([mono, mono], 1), rate)))
    assert spectrum.argmax() == 1000
    assert spectrum[1000] > 0.3
    assert spectrum[1100:].max() < 0.001


def test_both_channels_are_heard(tmp_path: Path) -> None:
    """A tone on one side only is there in the mix, as loud from either side."""
    left, right = tone(2, 1000, 44_100), tone(2, 3000, 44_100)
    path = write_wav(tmp_path / "sides.wav", np.stack([left, right], 1), 44_100)
    spectrum = _spectrum(_decode(path))
    assert spectrum[1000] > 0.15
    assert spectrum[1000] == pytest.approx(spectrum[3000], rel=0.01)


@pytest.mark.parametrize("right", [tone(2), noise(2), 0 * tone(2)], ids=["same", "other", "none"])
def test_stereo_is_no_louder_than_its_mono_mix(right: np.ndarray, tmp_path: Path) -> None:
    """Two channels are heard as their mean, so the same sound has the same level in either form."""
    stereo = np.stack([tone(2), right], 1)
    mixed = _decode(write_wav(tmp_path / "mono.wav", stereo.mean(axis=1)))
    heard = _decode(write_wav(tmp_path / "stereo.wav", stereo))
    np.testing.assert_allclose(heard, mixed, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 9, 64])
def test_any_number_of_channels_is_heard_as_their_mean(channels: int, tmp_path: Path) -> None:
    """Eight channels are surround sound; of more than PyAV has planes for, none is lost."""
    sides = np.random.default_rng(0).uniform(-0.5, 0.5, (SAMPLE_RATE, channels))
    heard = _decode(write_wav(tmp_path / "many.wav", sides))
    np.testing.assert_allclose(heard, sides.mean(axis=1), atol=1e-4)


@pytest.mark.parametrize("rates", [(32_000, 32_000), (44_100, 44_100), (32_000, 44_100)])
@pytest.mark.parametrize(("suffix", "codec"), [(".aac", "aac"), (".mp3", "libmp3lame")])
def test_channels_and_rate_may_change_along_the_way(
    suffix: str, codec: str, rates: tuple[int, int], tmp_path: Path
) -> None:
    """What was recorded from a broadcast may go from stereo to mono; both parts are heard."""
    options = {"write_xing": "0", "id3v2_version": "0"} if suffix == ".mp3" else {}
    mono, path = tone(2, 1000), tmp_path / f"both{suffix}"
    parts = []
    for samples, rate in zip((np.stack([mono, mono], 1), mono), rates, strict=True):
        encode_as(path, samples, codec, 64_000, rate, **options)
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))
    decoded = _decode(path)
    assert decoded.size / SAMPLE_RATE == pytest.approx(4, abs=0.3)
    for part in (decoded[: decoded.size // 2], decoded[decoded.size // 2 :]):
        assert _spectrum(part).argmax() == 1000
        assert _spectrum(part)[1000] == pytest.approx(1 / 3, rel=0.1)


def test_what_32_khz_cannot_hold_does_not_come_back_as_another_tone(tmp_path: Path) -> None:
    """A tone above the Nyquist frequency is filtered away, not folded down to an audible one."""
    path = write_wav(tmp_path / "t.wav", tone(2, 1000, 48_000) + tone(2, 20_000, 48_000), 48_000)
    spectrum = _spectrum(_decode(path))
    assert spectrum[1000] > 0.3
    assert spectrum[12_000] < 0.001


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".aac", "aac"),
        (".aiff", "pcm_s16be"),
        (".caf", "pcm_s16be"),
        (".m4b", "aac"),
        (".mka", "libopus"),
        (".mp2", "mp2"),
        (".mp4", "aac"),
        (".oga", "libopus"),
        (".webm", "libopus"),
        (".wma", "wmav2"),
    ],
)
def test_the_other_audio_suffixes_are_decoded_too(suffix: str, codec: str, tmp_path: Path) -> None:
    """A tone survives each format whose suffix counts as a sound but has no example."""
    path = tmp_path / f"tone{suffix}"
    encode_as(path, tone(3, 1000), codec)
    decoded = _decode(path)
    assert decoded.size / SAMPLE_RATE == pytest.approx(3, abs=0.1)
    assert _spectrum(decoded).argmax() == 1000
