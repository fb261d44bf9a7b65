"""A part of a sound file as WAV, cut out without decoding what lies before it.

Run as a process of its own, since the file is anybody's::

    python -m audiofuse.core.audio.excerpt PATH START_S END_S > excerpt.wav
"""

import io
import resource
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from audiofuse.core.audio.recording import FORMATS

MOST_S = 120.0  # of one excerpt: 23 MB at most of usual rates
MEMORY_BYTES = 2**31  # of the process: more is no sound's need
CPU_S = 60  # lower: MP3 files of hours without a table of their frames are refused
SAMPLE_BYTES = 2


def cut(path: Path, start_s: float, end_s: float) -> bytes:
    """Return what is heard between two times as WAV, 16 bits, at the file's own rate.

    Mono stays mono, all else is mixed to stereo. Raises ``av.FFmpegError`` or ``ValueError`` where
    nothing can be decoded there.
    """
    with av.open(str(path), options={"format_whitelist": FORMATS}) as source:
        if not source.streams.audio:
            raise ValueError("no audio")
        stream = source.streams.audio[0]
        if stream.time_base and start_s:
            source.seek(_ticks(stream, start_s), stream=stream)
        channels = min(stream.channels, 2)
        content = io.BytesIO()
        with wave.open(content, "wb") as target:
            target.setparams((channels, SAMPLE_BYTES, stream.rate, 0, "NONE", ""))
            for samples in _between(stream, start_s, end_s):
                target.writeframes(samples.tobytes())
            if not target.getnframes():
                raise ValueError("the sound ends before")
        return content.getvalue()


def _ticks(stream: AudioStream, seconds: float) -> int:
    assert stream.time_base
    return int(seconds / stream.time_base) + (stream.start_time or 0)


def _between(stream: AudioStream, start_s: float, end_s: float) -> Iterator[NDArray[np.int16]]:
    """Yield samples ``(frames, channels)``, beginning with the frame that was sought."""
    layout = "mono" if stream.channels == 1 else "stereo"
    resampler = AudioResampler(format="s16", layout=layout, rate=stream.rate)
    begins_s = float((stream.start_time or 0) * (stream.time_base or 0))
    for frame in stream.container.decode(stream):  # type: ignore[attr-defined]
        at_s = (frame.time or 0.0) - begins_s
        if at_s >= end_s:
            return
        if at_s + frame.samples / frame.rate <= start_s:
            continue
        first = max(0, round((start_s - at_s) * stream.rate))
        last = round((end_s - at_s) * stream.rate)
        frame.pts = None
        for part in resampler.resample(frame):
            samples = part.to_ndarray().astype(np.int16, copy=False)
            yield samples.reshape(part.samples, -1)[first:last]


def main() -> None:
    """Cut what the command line names."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    path, start_s, end_s = sys.argv[1:]
    try:
        content = cut(Path(path), float(start_s), float(end_s))
    except (av.FFmpegError, ValueError) as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(content)


if __name__ == "__main__":
    main()
