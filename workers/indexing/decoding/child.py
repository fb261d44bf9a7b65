"""The decoding process itself: python -m audiofuse.workers.indexing.decoding.child.

Standard input is the socket to the worker, over which they say lines of JSON to each other. It ends
with the worker, however that ends.

    worker ── {"open": id, "max_duration_s": float, "slot"}, and the open file
                                    ──> {"sample_rate", "channels", "samples": n}
           ── {"next": id, "slot"}  ──> {"samples": n}
           ── {"close": id}         ──> nothing

The last window's answer has ``duration_s``, too: of most sounds that is the first.

Each line but ``close`` gets one answer; before the first comes ``{"ready": confinement}``, how far
it is confined: what ends before that is no sound's fault. A process may have many sounds open, and
works on one window at a time, so that a long sound never keeps a short one waiting for more than a
window. The window itself is written into a slot of the worker's slab (``exchange/slab.py``): ``n``
float32 samples, mono at 32 kHz. There may be no samples left for the last answer. Instead of any
answer there may be ``{"rejected": reason, "detail"}``, the sound's own fault, or ``{"bug": text}``;
then too the sound is closed.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from audiofuse.core.audio.confinement import Confinement, confine
from audiofuse.core.audio.recording import Recording, opened_recording
from audiofuse.core.audio.windows import WINDOW_SAMPLES, Samples
from audiofuse.core.children import end_with
from audiofuse.core.errors import Reason, Rejected
from audiofuse.workers.indexing.exchange.slab import SlabMapping

Answer = dict[str, Any]

REQUEST_BYTES = 65536


class Sound:
    """One open sound file, read window by window."""

    def __init__(self, descriptor: int, max_duration_s: float) -> None:
        """Take over the open file; ``Rejected`` when it is no sound file."""
        with ExitStack() as closing:
            closing.callback(os.close, descriptor)
            opened = opened_recording(descriptor, max_duration_s)
            self.recording: Recording = closing.enter_context(opened)
            self._closing = closing.pop_all()
        self._windows: Iterator[Samples] = self.recording.windows()

    def next_window(self) -> Samples | None:
        """Return the next window; ``None`` after the last. Raises what reading it raises."""
        return next(self._windows, None)

    def close(self) -> None:
        """Let go of the file."""
        self._closing.close()


class Child:
    """Answers the worker's requests, one after the other."""

    def __init__(self, shared: int) -> None:
        """Write windows into the slab behind the descriptor ``shared``."""
        self._socket = socket.socket(fileno=0)
        self._slab = SlabMapping(shared)
        self._files: deque[int] = deque()  # that came and are not opened as sounds yet
        self._open: dict[int, Sound] = {}

    def serve(self, confined: Confinement) -> None:
        """Tell that it has started, then answer until the worker closes its end."""
        self._send({"ready": confined.name})
        for line in self._requests():
            answer = self.answer(json.loads(line))
            if answer is not None:
                self._send(answer)

    def _requests(self) -> Iterator[bytes]:
        begun = b""
        while True:
            content, files, *_ = socket.recv_fds(self._socket, REQUEST_BYTES, maxfds=1)
            if not content:
                return
            self._files.extend(files)
            *lines, begun = (begun + content).split(b"\n")
            yield from lines

    def _send(self, answer: Answer) -> None:
        self._socket.sendall(json.dumps(answer).encode() + b"\n")

    def answer(self, request: dict[str, Any]) -> Answer | None:
        """Return the answer to a request, if it gets one; what fails closes its sound."""
        if "close" in request:
            self._close(request["close"])
            return None
        number = request["open"] if "open" in request else request["next"]
        try:
            return self._begin(**request) if "open" in request else self._next(**request)
        except Rejected as verdict:
            answer = {"rejected": verdict.reason, "detail": verdict.detail}
        except MemoryError:
            answer = {"rejected": Reason.CRASHED, "detail": "decoding takes too much memory"}
        except Exception as error:  # noqa: BLE001 - the worker decides what that means
            answer = {"bug": f"{type(error).__name__}: {error}"}
        self._close(number)
        return answer

    def _begin(self, open: int, max_duration_s: float, slot: int) -> Answer:  # noqa: A002
        sound = self._open[open] = Sound(self._files.popleft(), max_duration_s)
        recording = sound.recording
        facts = {"sample_rate": recording.sample_rate, "channels": recording.channels}
        return facts | self._next(open, slot)

    def _next(self, next: int, slot: int) -> Answer:  # noqa: A002
        sound = self._open[next]
        window = sound.next_window()
        answer: Answer = {}
        if window is not None:
            self._slab.window(slot, window.size)[:] = window
            answer["samples"] = window.size
        if window is None or window.size < WINDOW_SAMPLES:  # only the last is shorter
            answer["duration_s"] = sound.recording.duration_s
            self._close(next)
        return answer

    def _close(self, number: int) -> None:
        if sound := self._open.pop(number, None):
            sound.close()


def main(shared: int, memory_bytes: int, parent: int) -> None:
    """Be a decoding process for the worker ``parent``, of at most so much address space."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's to act on
    end_with(parent)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    child = Child(shared)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the worker is gone
        child.serve(confine())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
