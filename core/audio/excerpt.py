"""A part of a sound file as WAV, cut out without reading or decoding what it can do without.

Cut in a process of its own, since the file is anybody's. That process reaches no file and no
bucket: it asks the one that started it for bytes, a line ``part FIRST COUNT`` at a time, and says
at last ``sound``, which WAV follows, or ``error`` and why.
"""

import io
import re
import resource
import signal
import socket
import subprocess
import sys
import wave
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Timer
from typing import IO

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from audiofuse.core.audio.confinement import bare_environment, confine
from audiofuse.core.audio.containers import is_constant_mp3
from audiofuse.core.audio.recording import FORMATS, QUICK

MOST_S = 120.0  # of one excerpt: 23 MB at most of usual rates
MEMORY_BYTES = 2**31  # of the process: more is no sound's need
CPU_S = 60  # lower: MP3 files of hours without a table of their frames are refused
PATIENCE_S = 90.0  # to read and cut a sound; lower: long files on slow disks have no excerpts
# A file is fetched in blocks: one after a jump, as the search for a moment makes them, and twice as
# many each time that reading goes on. Larger: more is fetched in vain; smaller: more requests.
BLOCK = 2**17  # bytes
MOST_BLOCKS = 8  # at once
KEPT_BLOCKS = 32  # a search comes back to where it was
EARLIER_S = 0.5  # decoding begins earlier: a frame may need what is in those before it
LINE_BYTES = 1000  # of what the process says
ASKED = re.compile(rb"part (\d{1,18}) (\d{1,18})\n")
SAMPLE_BYTES = 2

Part = Callable[[int, int], bytes]  # gives bytes of a file: from the first, so many


class NotCut(Exception):  # noqa: N818 - it is the file, or what was asked of it
    """There is no such excerpt; the message says why."""


def excerpt(part: Part, size: int, start_s: float, end_s: float) -> bytes:
    """Return what is heard between two times, as ``cut`` does, of a file of ``size`` bytes.

    Raises ``NotCut``, and whatever ``part`` raises.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-m", __spec__.name, *map(str, (size, start_s, end_s))],
                stdin=theirs.fileno(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=bare_environment(),
            )  # fmt: skip
        late = Timer(PATIENCE_S, child.kill)
        late.start()
        try:
            assert child.stdout
            said = _answered(child.stdout, ours, part, size)
            content: bytes = child.stdout.read()
            child.wait()
        finally:
            late.cancel()
            child.kill()
            child.communicate()
    if child.returncode == -signal.SIGKILL:
        raise NotCut("cutting it takes too long")
    if child.returncode or said != b"sound\n":
        why = said.removeprefix(b"error ").decode(errors="replace").strip()
        raise NotCut(why or "it cannot be cut")
    return content


def _answered(asks: IO[bytes], answers: socket.socket, part: Part, size: int) -> bytes:
    """Give the process what it asks for; return its last word, empty if it died without one."""
    while asked := ASKED.fullmatch(said := asks.readline(LINE_BYTES)):
        first, count = map(int, asked.groups())
        if not (0 <= first < first + count <= size and count <= MOST_BLOCKS * BLOCK):
            raise NotCut("it cannot be cut")  # such a process is ours no longer
        with suppress(BrokenPipeError):  # then it has no more to say
            answers.sendall(part(first, count))
    return said


class _Asked(io.RawIOBase):
    """The file as FFmpeg reads it: of each part it asks whoever started the process."""

    def __init__(self, size: int, asks: IO[bytes], answers: IO[bytes]) -> None:
        self._size, self._asks, self._answers = size, asks, answers
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()  # by number; those fetched last
        self._next, self._many = 0, 1  # the block after those fetched last, and how many they were

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, most: int = -1) -> bytes:
        if not 0 <= self._at < self._size:
            return b""
        number, begin = divmod(self._at, BLOCK)
        if number not in self._blocks:
            self._fetch(number)
        piece = self._blocks[number][begin : begin + most if most >= 0 else None]
        self._at += len(piece)
        return piece

    def _fetch(self, number: int) -> None:
        goes_on = number == self._next
        self._many = min(MOST_BLOCKS, self._many * 2) if goes_on else 1
        self._next = number + self._many
        first = number * BLOCK
        count = min(self._many * BLOCK, self._size - first)
        self._asks.write(b"part %d %d\n" % (first, count))
        self._asks.flush()
        fetched = self._answers.read(count)
        if len(fetched) < count:
            raise EOFError("nobody gives the file any longer")
        for each in range(0, count, BLOCK):
            self._blocks[(first + each) // BLOCK] = fetched[each : each + BLOCK]
        while len(self._blocks) > KEPT_BLOCKS:
            self._blocks.popitem(last=False)


def cut(file: io.RawIOBase, start_s: float, end_s: float) -> bytes:
    """Return what is heard between two times as WAV, 16 bits, at the file's own rate.

    Mono stays mono, all else is mixed to stereo. Raises ``av.FFmpegError`` or ``ValueError`` where
    nothing can be decoded there.
    """
    # Else FFmpeg reads all of an MP3 file that lies before. In an even one it misses by a frame.
    options = QUICK | ({"fflags": "+fastseek"} if is_constant_mp3(file) else {})
    file.seek(0)
    with av.open(file, "r", options={"format_whitelist": FORMATS} | options) as source:
        if not source.streams.audio:
            raise ValueError("no audio")
        stream = source.streams.audio[0]
        if stream.time_base and start_s:
            source.seek(_ticks(stream, max(0.0, start_s - EARLIER_S)), stream=stream)
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
    confine()
    size, start_s, end_s = sys.argv[1:]
    asks = sys.stdout.buffer
    try:
        content = cut(_Asked(int(size), asks, sys.stdin.buffer), float(start_s), float(end_s))
    except (av.FFmpegError, ValueError) as error:
        asks.write(f"error {error}"[-LINE_BYTES:].encode())
        return
    asks.write(b"sound\n" + content)


if __name__ == "__main__":
    main()
