"""From a sound file to windows of mono float32 at 32 kHz, streamed: hours fit in memory.

One decoder, PyAV, reads every format. A file that is not whole raises ``Rejected``.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from core.errors import Reason, Rejected

SAMPLE_RATE = 32_000  # Hz, what the audio tower hears
WINDOW_S = 10  # the audio tower was trained on windows of this length
WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE
MIN_DURATION_S = 0.05
SILENCE_PEAK = 1e-4  # full scale is 1; -80 dB is below the noise of any recording
TOLERANCE_S = 0.25  # a header may promise this much more than it holds: encoder delay and padding
OGG_LAST_PAGE = 0x04  # bit of the page header's type field
ID3_HEADER_BYTES = 10
MP3_FIRST_FRAME_BYTES = 4096  # the Xing/Info/VBRI tag is in the first frame
RIFF_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # written by programs that stream

Samples = NDArray[np.float32]


class Recording:
    """An open sound file. ``sample_rate`` and ``channels`` are the file's own."""

    def __init__(self, path: Path, container: InputContainer, max_duration_s: float) -> None:
        """Take the first audio stream; ``Rejected`` without one, or if the header says too long."""
        if not container.streams.audio:
            raise Rejected(Reason.NOT_AUDIO, f"a {container.format.name} file without audio")
        self._path = path
        self._container = container
        self._stream: AudioStream = container.streams.audio[0]
        self._max_duration_s = max_duration_s
        self._samples = 0
        self.sample_rate = self._stream.rate
        self.channels = self._stream.channels
        if (self._header_duration_s or 0) > max_duration_s:
            raise self._too_long(f"{self._header_duration_s:.0f} s")

    @property
    def duration_s(self) -> float:
        """Seconds decoded so far: the clip's duration once ``windows`` is exhausted."""
        return self._samples / SAMPLE_RATE

    @property
    def _header_duration_s(self) -> float | None:
        if self._stream.duration is None or self._stream.time_base is None:
            return None
        return float(self._stream.duration * self._stream.time_base)

    def windows(self) -> Iterator[Samples]:
        """Yield the clip in windows of ``WINDOW_SAMPLES``; the last one is shorter.

        Raises ``Rejected`` as soon as the clip proves too long or broken; at the end, when it was
        too short, silent, or cut off.
        """
        pending: list[Samples] = []
        pending_samples = 0
        for chunk in self._checked(self._resampled()):
            pending.append(chunk)
            pending_samples += chunk.size
            while pending_samples >= WINDOW_SAMPLES:
                joined = np.concatenate(pending)
                yield joined[:WINDOW_SAMPLES]
                pending = [joined[WINDOW_SAMPLES:]]
                pending_samples = pending[0].size
        if pending_samples:
            yield np.concatenate(pending)

    def _resampled(self) -> Iterator[Samples]:
        """Decode to mono at 32 kHz. Channels are mixed by FFmpeg's default matrix."""
        resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        try:
            for frame in self._container.decode(self._stream):
                for part in resampler.resample(frame):
                    yield part.to_ndarray()[0]
        except av.FFmpegError as error:
            detail = f"decoding stops after {self.duration_s:.2f} s: {error.strerror}"
            raise Rejected(Reason.DAMAGED, detail) from error
        for part in resampler.resample(None):
            yield part.to_ndarray()[0]

    def _checked(self, chunks: Iterator[Samples]) -> Iterator[Samples]:
        peak = 0.0
        for chunk in chunks:
            if not chunk.size:
                continue
            self._samples += chunk.size
            if self.duration_s > self._max_duration_s:
                raise self._too_long(f"more than {self._max_duration_s:.0f} s")
            if not np.isfinite(chunk).all():
                raise Rejected(Reason.NOT_FINITE, "the samples hold NaN or infinity")
            peak = max(peak, float(np.abs(chunk).max()))
            yield chunk
        self._check_whole()
        if self.duration_s < MIN_DURATION_S:
            raise Rejected(
                Reason.TOO_SHORT, f"{self.duration_s:.3f} s; at least {MIN_DURATION_S} s are needed"
            )
        if peak < SILENCE_PEAK:
            raise Rejected(Reason.SILENT, f"all {self.duration_s:.1f} s are silent")

    def _check_whole(self) -> None:
        promised = self._header_duration_s
        if promised and _states_duration(self._path, self._container.format.name):
            missing = promised - self.duration_s
            if missing > TOLERANCE_S + 0.01 * promised:
                detail = f"only {self.duration_s:.2f} of {promised:.2f} s can be decoded"
                raise Rejected(Reason.DAMAGED, f"{detail}: cut off or corrupt")
        if _ends_early(self._path, self._container.format.name):
            detail = f"the file ends early, after {self.duration_s:.2f} s of sound"
            raise Rejected(Reason.DAMAGED, detail)

    def _too_long(self, found: str) -> Rejected:
        return Rejected(Reason.TOO_LONG, f"{found}; the limit is {self._max_duration_s:.0f} s")


@contextmanager
def open_recording(path: Path, max_duration_s: float) -> Iterator[Recording]:
    """Open a sound file for decoding; ``Rejected`` when it is empty or no sound file."""
    if path.stat().st_size == 0:
        raise Rejected(Reason.EMPTY, "the object has no bytes")
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except av.FFmpegError as error:
        detail = f"no decoder recognises it: {error.strerror}"
        raise Rejected(Reason.NOT_AUDIO, detail) from error
    with container:
        yield Recording(path, container, max_duration_s)


def _states_duration(path: Path, container_format: str) -> bool:
    """Whether the header's duration was written by the encoder rather than guessed by FFmpeg."""
    if container_format == "mp3":
        return _has_mp3_length(path)
    return container_format not in {"aac", "wav"}  # guessed, or derived from what is there


def _has_mp3_length(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(ID3_HEADER_BYTES)
        if head[:3] == b"ID3":
            size = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
            file.seek(ID3_HEADER_BYTES + size)
        else:
            file.seek(0)
        first = file.read(MP3_FIRST_FRAME_BYTES)
    return any(tag in first for tag in (b"Xing", b"Info", b"VBRI"))


def _ends_early(path: Path, container_format: str) -> bool:
    """Whether a format that FFmpeg reads leniently says that more should follow."""
    if container_format == "wav":
        return _riff_ends_early(path)
    return container_format == "ogg" and not _has_last_ogg_page(path)


def _riff_ends_early(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] != b"RIFF":
        return False
    size: int = struct.unpack("<I", head[4:])[0]
    return size not in RIFF_UNKNOWN_SIZES and size + len(head) > path.stat().st_size + 1


def _has_last_ogg_page(path: Path) -> bool:
    largest_page = 27 + 255 + 255 * 255
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2 * largest_page))
        tail = file.read()
    page = tail.rfind(b"OggS")
    return 0 <= page < len(tail) - 5 and bool(tail[page + 5] & OGG_LAST_PAGE)
