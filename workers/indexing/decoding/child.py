"""The decoding process itself: python -m audiofuse.workers.indexing.decoding.child.

Standard input is the socket to the worker. It ends with the worker, however that ends.
"""

import contextlib
import json
import mmap
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from audiofuse.core.audio.recording import WINDOW_SAMPLES, Recording, Samples, open_recording
from audiofuse.core.children import end_with
from audiofuse.core.errors import Reason, Rejected
from audiofuse.workers.indexing.decoding.protocol import WINDOW_BYTES

Answer = dict[str, Any]


class Sound:
    """One open sound file, read window by window."""

    def __init__(self, path: Path, max_duration_s: float) -> None:
        """Open it; ``Rejected`` when it is no sound file."""
        self._closing = ExitStack()
        self.recording: Recording = self._closing.enter_context(
            open_recording(path, max_duration_s)
        )
        self.windows: Iterator[Samples] = self.recording.windows()

    def close(self) -> None:
        """Let go of the file."""
        self._closing.close()


class Child:
    """Answers the worker's requests, one after the other."""

    def __init__(self, shared: int) -> None:
        """Write windows into the memory that the descriptor ``shared`` names."""
        self._socket = socket.socket(fileno=0)
        self._memory = np.frombuffer(mmap.mmap(shared, WINDOW_BYTES), np.float32)
        self._open: dict[int, Sound] = {}

    def serve(self) -> None:
        """Tell that it has started, then answer until the worker closes its end."""
        self._send({"ready": True})
        with self._socket.makefile("rb") as requests:
            for line in requests:
                answer = self.answer(json.loads(line))
                if answer is not None:
                    self._send(answer)

    def _send(self, answer: Answer) -> None:
        self._socket.sendall(json.dumps(answer).encode() + b"\n")

    def answer(self, request: dict[str, Any]) -> Answer | None:
        """Return the answer to a request, if it gets one; what fails closes its sound."""
        if "close" in request:
            self._close(request["close"])
            return None
        number = request["open"] if "open" in request else request["next"]
        try:
            return self._begin(**request) if "open" in request else self._next(number)
        except Rejected as verdict:
            answer = {"rejected": verdict.reason, "detail": verdict.detail}
        except MemoryError:
            answer = {"rejected": Reason.CRASHED, "detail": "decoding takes too much memory"}
        except Exception as error:  # noqa: BLE001 - the worker decides what that means
            answer = {"bug": f"{type(error).__name__}: {error}"}
        self._close(number)
        return answer

    def _begin(self, open: int, path: str, max_duration_s: float) -> Answer:  # noqa: A002
        sound = self._open[open] = Sound(Path(path), max_duration_s)
        return {"sample_rate": sound.recording.sample_rate, "channels": sound.recording.channels}

    def _next(self, number: int) -> Answer:
        sound = self._open[number]
        window = next(sound.windows, None)
        answer: Answer = {}
        if window is not None:
            self._memory[: window.size] = window
            answer["samples"] = window.size
        if window is None or window.size < WINDOW_SAMPLES:  # only the last is shorter
            answer["duration_s"] = sound.recording.duration_s
            self._close(number)
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
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the worker is gone
        Child(shared).serve()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
