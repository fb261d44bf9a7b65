"""What is cut off, damaged, silent, too long or no audio is rejected; what only looks so is not."""

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from made_sounds import PCM, encode_as, float_wav, header, noise, tone, write_wav

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES
from audiofuse.core.errors import Reason, Rejected

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
LIMIT_S = 4 * 3600.0


def _decode(path: Path, max_duration_s: float = LIMIT_S) -> np.ndarray:
    with open_recording(path, max_duration_s) as recording:
        return np.concatenate(list(recording.windows()))


def _verdict(path: Path, max_duration_s: float = LIMIT_S) -> Rejected:
    with pytest.raises(Rejected) as caught:
        _decode(path, max_duration_s)
    return caught.value


def _example(name: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes((SOUNDS / name).read_bytes())


def _noise_as(codec: str) -> Callable[[Path], object]:
    return lambda path: encode_as(path, noise(4), codec)


@pytest.mark.parametrize("share", [0.2, 0.6])
@pytest.mark.parametrize(
    ("suffix", "write", "reason"),
    [
        (".wav", _example("animals/crickets.wav"), Reason.DAMAGED),
        (".flac", _example("machines/cash-register.flac"), Reason.DAMAGED),
        (".ogg", _example("music/gong.ogg"), Reason.DAMAGED),
        (".opus", _example("machines/clip-0012.opus"), Reason.DAMAGED),
        (".m4a", _example("music/tabla-loop.m4a"), Reason.DAMAGED),
        # Here the table of contents is at the end, so nothing can be read of it.
        (".m4a", _noise_as("aac"), Reason.NOT_AUDIO),
        (".mp3", _noise_as("libmp3lame"), Reason.DAMAGED),
        (".aac", _noise_as("aac"), Reason.DAMAGED),
        (".aiff", _noise_as("pcm_s16be"), Reason.DAMAGED),
        (".wma", _noise_as("wmav2"), Reason.DAMAGED),
        (".mka", _noise_as("libopus"), Reason.DAMAGED),
        (".webm", _noise_as("libopus"), Reason.DAMAGED),
    ],
)
def test_a_file_that_is_cut_off_is_rejected(
    suffix: str, write: Callable[[Path], object], reason: Reason, share: float, tmp_path: Path
) -> None:
    """Half an upload is never indexed as if it were the whole sound."""
    path = tmp_path / f"cut{suffix}"
    write(path)
    assert _decode(path).size > SAMPLE_RATE  # whole, it is fine
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert _verdict(path).reason is reason


def test_a_wav_without_its_last_sample_is_cut_off(tmp_path: Path) -> None:
    """Not even one missing sample passes where the header tells the size exactly."""
    path = write_wav(tmp_path / "cut.wav", tone(1))
    path.write_bytes(path.read_bytes()[:-2])
    assert _verdict(path).reason is Reason.DAMAGED


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("home/knarrende-tür.ogg", 0.9),
        ("machines/clip-0012.opus", 0.9),
        ("people/memo-19.ogg", 0.8),
        ("water/recording 2.ogg", 0.8),
    ],
)
def test_an_ogg_file_cut_off_in_its_last_page_is_rejected(
    name: str, share: float, tmp_path: Path
) -> None:
    """The header of the last page alone does not make a file whole."""
    content = (SOUNDS / name).read_bytes()
    path = tmp_path / "cut.ogg"
    path.write_bytes(content[: int(len(content) * share)])
    assert _verdict(path).reason is Reason.DAMAGED


def _with_garbage(source: Path, target: Path, every: int) -> None:
    """Copy a file with one of so many packets replaced by random bytes."""
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        stream = written.add_stream_from_template(read.streams.audio[0])
        for number, whole in enumerate(read.demux(audio=0)):
            if whole.dts is None:
                continue  # the empty packet at the end
            packet = whole
            if number % every == every - 1:
                packet = av.Packet(np.random.default_rng(number).bytes(whole.size))
                packet.pts, packet.dts = whole.pts, whole.dts
                packet.duration, packet.time_base = whole.duration, whole.time_base
            packet.stream = stream
            written.mux(packet)


def test_a_file_with_many_broken_packets_is_damaged(tmp_path: Path) -> None:
    """A broken packet or two are skipped as players do; more than 5 % of them are no sound."""
    whole, broken = tmp_path / "whole.m4a", tmp_path / "broken.m4a"
    encode_as(whole, noise(2), "aac")
    _with_garbage(whole, broken, every=30)
    assert _decode(broken).size / SAMPLE_RATE == pytest.approx(2, abs=0.1)
    _with_garbage(whole, broken, every=15)  # 128 ms, less than what the header may be wrong by
    verdict = _verdict(broken)
    assert verdict.reason is Reason.DAMAGED
    assert "packets" in verdict.detail


def test_a_length_tag_behind_cover_art_is_found(tmp_path: Path) -> None:
    """An MP3 that is cut off is noticed although a large ID3 tag precedes its length."""
    path = tmp_path / "cover.mp3"
    encode_as(path, noise(4), "libmp3lame", id3v2_version="0")
    art = bytes(100_000)
    size = bytes(len(art) >> shift & 0x7F for shift in (21, 14, 7, 0))
    whole = b"ID3\x04\x00\x00" + size + art + path.read_bytes()
    path.write_bytes(whole)
    assert _decode(path).size / SAMPLE_RATE == pytest.approx(4, abs=0.1)
    path.write_bytes(whole[:-12_000])
    assert _verdict(path).reason is Reason.DAMAGED


def test_a_guessed_length_is_no_promise(tmp_path: Path) -> None:
    """An MP3 without a length tag is whole, however wrong the length that its bit rate suggests."""
    parts = []
    for bit_rate in (32_000, 128_000):
        part = tmp_path / f"{bit_rate}.mp3"
        encode_as(part, noise(3), "libmp3lame", bit_rate, write_xing="0", id3v2_version="0")
        parts.append(part.read_bytes())
    path = tmp_path / "both.mp3"
    path.write_bytes(b"".join(parts))
    assert _decode(path).size / SAMPLE_RATE == pytest.approx(6, abs=0.2)


def test_a_guessed_length_is_no_reason_to_reject(tmp_path: Path) -> None:
    """AAC that begins quietly seems endless; only what is decoded counts against the limit."""
    path = tmp_path / "quiet.aac"
    encode_as(path, np.concatenate([0 * tone(15), noise(15)]), "aac", 128_000)
    assert _decode(path, max_duration_s=60).size / SAMPLE_RATE == pytest.approx(30, abs=0.3)


def _with_nan() -> np.ndarray:
    samples = tone(1)
    samples[20_000] = np.nan
    return samples


def _with_infinity() -> np.ndarray:
    samples = tone(1)
    samples[20_000] = -np.inf
    return samples


BAD = {
    "empty": (b"", Reason.EMPTY),
    "text": (b"These are notes, no sound.\n" * 100, Reason.NOT_AUDIO),
    "web page": (b"<!doctype html><title>404 Not Found</title>", Reason.NOT_AUDIO),
    "JSON": (b'{"title": "Rain"}', Reason.NOT_AUDIO),
    "random bytes": (np.random.default_rng(0).bytes(50_000), Reason.NOT_AUDIO),
    "zeros": (bytes(50_000), Reason.NOT_AUDIO),
    "header without sound": (header(PCM, 16, 36, 0), Reason.TOO_SHORT),
    "header that promises sound": (header(PCM, 16, 36 + 64_000, 64_000), Reason.DAMAGED),
    "half a header": (header(PCM, 16, 36, 0)[:30], Reason.NOT_AUDIO),
    "rate of zero": (header(PCM, 16, 36 + 64_000, 64_000, 0) + bytes(64_000), Reason.NOT_AUDIO),
    "unknown codec": (header(0x1234, 16, 36 + 64_000, 64_000) + bytes(64_000), Reason.NOT_AUDIO),
    "NaN": (float_wav(_with_nan()), Reason.NOT_FINITE),
    "infinity": (float_wav(_with_infinity()), Reason.NOT_FINITE),
    "silence": (float_wav(np.zeros(SAMPLE_RATE)), Reason.SILENT),
    "less than -80 dB": (float_wav(tone(1) * 2e-4), Reason.SILENT),
    "0.01 s": (float_wav(tone(0.01)), Reason.TOO_SHORT),
    "one sample": (float_wav(np.ones(1)), Reason.TOO_SHORT),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_indexed_gets_its_reason(case: str, tmp_path: Path) -> None:
    """Every way to be no usable sound has one verdict, with words a person can act on."""
    content, reason = BAD[case]
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    verdict = _verdict(path)
    assert verdict.reason is reason
    assert verdict.detail


@pytest.mark.parametrize("samples", [tone(1) * 1e-3, tone(0.06)], ids=["quiet", "short"])
def test_what_is_just_loud_and_long_enough_is_taken(samples: np.ndarray, tmp_path: Path) -> None:
    """The limits turn away what holds nothing, not what is merely quiet or short."""
    path = tmp_path / "small.wav"
    path.write_bytes(float_wav(samples))
    assert _decode(path).size == samples.size


def test_a_file_never_reads_another(tmp_path: Path) -> None:
    """A playlist that passes for a sound does not lead to the files of this machine."""
    write_wav(tmp_path / "other.wav", tone(1))
    path = tmp_path / "list.wav"
    path.write_text("ffconcat version 1.0\nfile other.wav\n")
    assert _verdict(path).reason is Reason.NOT_AUDIO


def test_a_film_without_sound_is_no_audio(tmp_path: Path) -> None:
    """A container that FFmpeg knows but that holds no audio stream is told apart from garbage."""
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame(16, 16, "yuv420p")
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    verdict = _verdict(path)
    assert verdict.reason is Reason.NOT_AUDIO
    assert "without audio" in verdict.detail


def test_ten_hours_are_turned_away_by_the_header(tmp_path: Path) -> None:
    """A recording that says it is too long is not even opened for decoding."""
    path = tmp_path / "night.wav"
    size = 10 * 3600 * SAMPLE_RATE * 2
    path.write_bytes(header(PCM, 16, 36 + size, size))
    with path.open("r+b") as file:
        file.truncate(44 + size)
    with (
        pytest.raises(Rejected, match="36000 s; the limit is 14400 s") as caught,
        open_recording(path, LIMIT_S),
    ):
        pytest.fail("it was opened")
    assert caught.value.reason is Reason.TOO_LONG


def test_a_stream_of_unknown_length_is_stopped_at_the_limit(tmp_path: Path) -> None:
    """Without a length in the header, decoding ends as soon as the limit is passed."""
    path = tmp_path / "stream.flac"
    encode_as(path, noise(25), "flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples; 0 is unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with open_recording(path, 12) as recording:
        windows = recording.windows()
        assert next(windows).size == WINDOW_SAMPLES
        with pytest.raises(Rejected) as caught:
            next(windows)
        assert recording.duration_s < 13
    assert caught.value.reason is Reason.TOO_LONG


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0])
def test_a_wav_from_a_pipe_is_as_long_as_its_samples(size: int, tmp_path: Path) -> None:
    """A header of unknown size, as streaming programs write it, is neither endless nor cut off."""
    data = (tone(3) * 32767).astype("<i2").tobytes()
    path = tmp_path / "pipe.wav"
    path.write_bytes(header(PCM, 16, size, size) + data)
    assert _decode(path).size == 3 * SAMPLE_RATE
    assert _verdict(path, max_duration_s=2).reason is Reason.TOO_LONG


def test_a_recording_exactly_as_long_as_allowed_is_taken(tmp_path: Path) -> None:
    """The limit itself is not too long."""
    assert _decode(write_wav(tmp_path / "t.wav", tone(2)), max_duration_s=2).size == 64_000


def test_bytes_behind_a_wav_do_no_harm(tmp_path: Path) -> None:
    """What some programs append after the end of the RIFF is not decoded and no damage."""
    path = write_wav(tmp_path / "t.wav", tone(1))
    path.write_bytes(path.read_bytes() + b"appended notes" * 100)
    assert _decode(path).size == SAMPLE_RATE


@pytest.mark.parametrize("junk", [b"notes" * 100, bytes(500)], ids=["text", "zeros"])
@pytest.mark.parametrize("options", [{}, {"write_xing": "0"}], ids=["length", "no length"])
def test_bytes_behind_an_mp3_do_no_harm(
    options: dict[str, str], junk: bytes, tmp_path: Path
) -> None:
    """What old taggers append is skipped, with or without a length tag, and no sound is lost."""
    path = tmp_path / "t.mp3"
    encode_as(path, noise(2), "libmp3lame", 64_000, SAMPLE_RATE, **options)
    whole = _decode(path)
    path.write_bytes(path.read_bytes() + junk)
    np.testing.assert_array_equal(_decode(path), whole)


def test_tags_that_are_no_utf8_do_no_harm(tmp_path: Path) -> None:
    """A comment in an old encoding does not make its sound unreadable."""
    path = write_wav(tmp_path / "t.wav", tone(1))
    comment = b"INFOICMT" + struct.pack("<I", 4) + b"T\xfcr\0"
    content = path.read_bytes() + b"LIST" + struct.pack("<I", len(comment)) + comment
    path.write_bytes(b"RIFF" + struct.pack("<I", len(content) - 8) + content[8:])
    assert _decode(path).size == SAMPLE_RATE


def test_the_suffix_does_not_decide(tmp_path: Path) -> None:
    """The content tells the format: a FLAC file named .mp3 is decoded as what it is."""
    path = tmp_path / "really-flac.mp3"
    path.write_bytes((SOUNDS / "music/cowbell.flac").read_bytes())
    np.testing.assert_array_equal(_decode(path), _decode(SOUNDS / "music/cowbell.flac"))


def test_decoding_is_the_same_each_time() -> None:
    """One file gives the very same samples again, so equal content has equal vectors."""
    path = SOUNDS / "music/tabla-loop.m4a"
    np.testing.assert_array_equal(_decode(path), _decode(path))
