"""From a sound file to windows of mono float32 at 32 kHz, streamed: hours fit in memory.

One decoder, PyAV, reads every format. A file that is not whole raises ``Rejected``.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter import Graph

from audiofuse.core.audio.containers import Length, OpenFile, ends_early, length_of
from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from audiofuse.core.errors import Reason, Rejected

MIN_DURATION_S = 0.05
SILENCE_PEAK = 1e-4  # full scale is 1; -80 dB is below the noise of any recording
TOLERANCE_S = 0.25  # a header may promise this much more than it holds: encoder delay and padding
MAX_BAD_PACKETS = 0.05  # share of a file's packets; more is no stray tag
# Only these of FFmpeg's demuxers: others follow references to other files, as ffconcat does.
FORMATS = "aac,aiff,asf,au,caf,flac,matroska,mov,mp3,ogg,w64,wav"
# FFmpeg searches up to 5 MB of a WAV file for other codecs disguised as PCM, and then cuts it into
# packets of 4 kB; both take longer than decoding itself.
QUICK = {"probesize": "16384", "max_size": "16384"}  # bytes
# Samples of a channel that go through FFmpeg's graph at once. Fewer: its turns cost more than what
# they do, since most codecs give some 1,000 a frame; more: memory for nothing.
AT_ONCE = 65536


class Recording:
    """An open sound file. ``sample_rate`` and ``channels`` are the file's own."""

    def __init__(self, file: OpenFile, container: InputContainer, max_duration_s: float) -> None:
        """Take the first audio stream; ``Rejected`` without one, or if the header says too long."""
        if not container.streams.audio:
            raise Rejected(Reason.NOT_AUDIO, f"a {container.format.name} file without audio")
        self._file = file
        self._container = container
        self._stream: AudioStream = container.streams.audio[0]
        self._max_duration_s = max_duration_s
        self._samples = self._packets = self._bad_packets = 0
        if self._stream.codec_context is None:
            raise Rejected(Reason.NOT_AUDIO, f"a {container.format.name} file of an unknown codec")
        self.sample_rate = self._stream.rate
        self.channels = self._stream.channels
        self._length = length_of(file, container.format.name)
        promised = self._header_duration_s or 0
        if promised > max_duration_s and self._length in {Length.STATED, Length.MEASURED}:
            raise self._too_long(f"{promised:.0f} s")

    @property
    def duration_s(self) -> float:
        """Seconds decoded so far: the clip's duration once ``windows`` is exhausted."""
        return self._samples / SAMPLE_RATE

    @property
    def _header_duration_s(self) -> float | None:
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        container = self._container  # may tell it for all streams together
        if container.duration is None or container.streams.video:
            return None
        return container.duration / av.time_base

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
        """Decode to mono at 32 kHz, the mean of all channels: stereo is no louder than mono.

        Rate and channels may change along the way, as in what was recorded from a broadcast.
        """
        same_shape = itertools.groupby(
            self._frames(), key=lambda frame: (frame.format.name, frame.layout.name, frame.rate)
        )
        for (form, layout, rate), frames in same_shape:
            try:
                for part in _resampled(_joined(frames), form, layout, rate):
                    yield _mono(part)
            except av.FFmpegError as error:  # of hundreds of channels, say
                detail = f"it cannot be mixed to mono: {error.strerror}"
                raise Rejected(Reason.NOT_AUDIO, detail) from error

    def _frames(self) -> Iterator[AudioFrame]:
        """Decode packet by packet; one that does not decode is skipped, as players do.

        Tags at the end of MP3 files make such packets. What is missing in the end is judged by
        ``_check_whole``.
        """
        try:
            for packet in self._container.demux(self._stream):
                self._packets += 1
                try:
                    yield from packet.decode()
                except av.InvalidDataError:
                    self._bad_packets += 1
        except av.FFmpegError as error:
            detail = f"decoding stops after {self.duration_s:.2f} s: {error.strerror}"
            raise Rejected(Reason.DAMAGED, detail) from error

    def _checked(self, chunks: Iterator[Samples]) -> Iterator[Samples]:
        peak = 0.0
        for chunk in chunks:
            if not chunk.size:
                continue
            self._samples += chunk.size
            if self.duration_s > self._max_duration_s:
                raise self._too_long(f"more than {self._max_duration_s:.0f} s")
            high, low = float(chunk.max()), float(chunk.min())  # NaN if any is
            if not (math.isfinite(high) and math.isfinite(low)):
                raise Rejected(Reason.NOT_FINITE, "the samples hold NaN or infinity")
            peak = max(peak, high, -low)
            yield chunk
        self._check_whole()
        if self.duration_s < MIN_DURATION_S:
            raise Rejected(
                Reason.TOO_SHORT, f"{self.duration_s:.3f} s; at least {MIN_DURATION_S} s are needed"
            )
        if peak < SILENCE_PEAK:
            raise Rejected(Reason.SILENT, f"all {self.duration_s:.1f} s are silent")

    def _check_whole(self) -> None:
        tolerated = 0.0 if self._length is Length.UNKNOWN else MAX_BAD_PACKETS * self._packets
        if self._bad_packets > tolerated:
            detail = f"{self._bad_packets} of {self._packets} packets cannot be decoded"
            raise Rejected(Reason.DAMAGED, detail)
        promised = self._header_duration_s
        if promised and self._length is Length.STATED:
            missing = promised - self.duration_s
            if missing > TOLERANCE_S + 0.01 * promised:
                detail = f"only {self.duration_s:.2f} of {promised:.2f} s can be decoded"
                raise Rejected(Reason.DAMAGED, f"{detail}: cut off or corrupt")
        if ends_early(self._file, self._container.format.name):
            detail = f"the file ends early, after {self.duration_s:.2f} s of sound"
            raise Rejected(Reason.DAMAGED, detail)

    def _too_long(self, found: str) -> Rejected:
        return Rejected(Reason.TOO_LONG, f"{found}; the limit is {self._max_duration_s:.0f} s")


def _joined(frames: Iterator[AudioFrame]) -> Iterator[AudioFrame]:
    """Yield the samples of frames that have one shape in fewer frames, without their times."""
    joined = AudioFifo()
    for frame in frames:
        frame.pts = None
        joined.write(frame)
        if joined.samples >= AT_ONCE and (whole := joined.read()):
            yield whole
    if rest := joined.read(partial=True):
        yield rest


def _resampled(
    frames: Iterator[AudioFrame], form: str, layout: str, rate: int
) -> Iterator[AudioFrame]:
    """Yield the sound of frames of one shape at 32 kHz, as float32, all channels in one plane.

    As PyAV's ``AudioResampler`` does, whose graph starts a thread for each core and each sound.
    """
    graph = Graph()
    graph.threads = 1
    graph.link_nodes(
        graph.add("abuffer", sample_rate=str(rate), sample_fmt=form, channel_layout=layout),
        graph.add(
            "aformat", sample_rates=str(SAMPLE_RATE), sample_fmts="flt", channel_layouts=layout
        ),
        graph.add("abuffersink"),
    ).configure()
    for frame in itertools.chain(frames, [None]):  # None: what it holds back
        graph.push(frame)
        with suppress(av.BlockingIOError, av.EOFError):  # there is no more now, or at all
            while True:
                yield cast("AudioFrame", graph.pull())


def _mono(frame: AudioFrame) -> Samples:
    """Return the mean of a frame's channels, float32, which come sample by sample in one plane.

    Not by ``to_ndarray``, nor plane by plane: PyAV has memory for eight planes.
    """
    channels = frame.layout.nb_channels
    plane: Any = frame.planes[0]  # whose types do not tell that it is a buffer
    samples = np.frombuffer(plane, np.float32, frame.samples * channels)
    if channels == 1:
        return samples
    total: Samples = samples[::channels] + samples[1::channels]
    for number in range(2, channels):
        total += samples[number::channels]
    total /= np.float32(channels)
    return total


@contextmanager
def open_recording(path: Path, max_duration_s: float) -> Iterator[Recording]:
    """Open a sound file for decoding; ``Rejected`` when it is empty or no sound file."""
    with path.open("rb", buffering=0) as file:
        yield from _recording(file.fileno(), max_duration_s)


@contextmanager
def opened_recording(descriptor: int, max_duration_s: float) -> Iterator[Recording]:
    """Decode a sound file that another process has opened, as ``open_recording`` does.

    The descriptor is the caller's to close, afterwards.
    """
    yield from _recording(descriptor, max_duration_s)


def _recording(descriptor: int, max_duration_s: float) -> Iterator[Recording]:
    file = OpenFile(descriptor)
    if not file.size:
        raise Rejected(Reason.EMPTY, "the object has no bytes")
    options = {"fd": str(descriptor), "format_whitelist": FORMATS} | QUICK
    try:
        container = av.open("fd:", metadata_errors="ignore", options=options)
    except av.FFmpegError as error:
        detail = f"no decoder recognises it: {error.strerror}"
        raise Rejected(Reason.NOT_AUDIO, detail) from error
    with container:
        yield Recording(file, container, max_duration_s)
