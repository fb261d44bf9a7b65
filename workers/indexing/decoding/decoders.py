"""Decoding in processes of their own, which may hang, crash or eat memory and cost one sound only.

    worker ── {"path", "max_duration_s"} ──────────────────────> python -m ...decoding.decoders
           <── {"sample_rate", "channels"} ── {"window": slot} ... ── {"duration_s"} ──
           ── b"." for each window taken ──────────────────────>

Windows cross in memory that both processes map; it has two slots, so that one is decoded while the
other is taken. The child ends with its parent, however that ends.
"""

import contextlib
import ctypes
import json
import logging
import mmap
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from audiofuse.core.audio.recording import WINDOW_SAMPLES, Samples, open_recording
from audiofuse.core.errors import Reason, Rejected

log = logging.getLogger(__name__)

MEMORY_BYTES = 2 * 1024**3  # address space of one decoding process
SLOTS = 2
OTHERS_TURN = 10  # every so many sounds one that is not urgent goes first
SLOT_BYTES = WINDOW_SAMPLES * 4  # float32
TAKEN = b"."
PR_SET_PDEATHSIG = 1  # linux/prctl.h
THREADS_OF_ITS_OWN = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class DecoderBugError(Exception):
    """Decoding ended in an exception that says nothing about the sound."""


class Decoder:
    """One decoding process."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        """Start it; it may take at most ``memory_bytes`` of address space."""
        self._shared = _memory_file()
        self._shared.truncate(SLOTS * SLOT_BYTES)
        self._memory = mmap.mmap(self._shared.fileno(), SLOTS * SLOT_BYTES)
        self._socket, theirs = socket.socketpair()
        shared = str(self._shared.fileno())
        command = [
            sys.executable,
            "-m",
            "audiofuse.workers.indexing.decoding.decoders",
            shared,
            str(memory_bytes),
            str(os.getpid()),
        ]
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - ourselves
                command, stdin=theirs.fileno(), pass_fds=[self._shared.fileno()],
                env=os.environ | THREADS_OF_ITS_OWN,
            )  # fmt: skip
        self._replies = b""

    def ask(self, path: Path, max_duration_s: float) -> None:
        """Begin with a sound file."""
        self._send(json.dumps({"path": str(path), "max_duration_s": max_duration_s}).encode())
        self._send(b"\n")

    def reply(self, patience_s: float) -> dict[str, Any]:
        """Return the next reply; ``Rejected`` if the process is silent for too long, or died."""
        while b"\n" not in self._replies:
            ready, _, _ = select.select([self._socket], [], [], patience_s)
            if not ready:
                raise Rejected(Reason.HUNG, f"decoding made no progress for {patience_s:.0f} s")
            received = self._receive()
            if not received:
                code = self.process.wait()
                log.warning("decoding ended its process with code %d", code)
                raise Rejected(Reason.CRASHED, "decoding it ended the process that did")
            self._replies += received
        line, _, self._replies = self._replies.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def take(self, slot: int, samples: int) -> Samples:
        """Copy a window out of its slot, and let the slot be used again."""
        view = np.frombuffer(self._memory, np.float32, samples, slot * SLOT_BYTES)
        window = view.copy()
        self._send(TAKEN)
        return window

    def kill(self) -> None:
        """End the process at once and give back what it held."""
        self.process.kill()
        self.process.wait()
        self._socket.close()
        self._shared.close()

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `reply` will tell
            self._socket.sendall(message)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except ConnectionResetError:
            return b""


def _memory_file() -> IO[bytes]:
    """Return a file to map; where that is possible one that the kernel never writes to a disk."""
    create = getattr(os, "memfd_create", None)  # Linux has it
    if create:
        return os.fdopen(create("audiofuse-windows"), "r+b")
    return tempfile.TemporaryFile(prefix="audiofuse-windows-")


Tell = Callable[[float, Exception | None], None]


class DecodedRecording:
    """A sound file that a decoding process reads; see ``core.audio.recording.Recording``."""

    def __init__(
        self,
        decoder: Decoder,
        patience_s: float,
        release: Callable[[], None],
        tell: Tell,
    ) -> None:
        """Take the file's own facts from the first reply; ``release`` lets the decoder go."""
        self._tell = tell
        self._waited_s = 0.0
        self._decoder = decoder
        self._patience_s = patience_s
        self._release = release
        self.duration_s = 0.0
        facts = self._reply()
        self.sample_rate: int = facts["sample_rate"]
        self.channels: int = facts["channels"]

    def windows(self) -> Iterator[Samples]:
        """Yield the clip in windows; see ``core.audio.recording.Recording.windows``."""
        while "window" in (reply := self._reply()):
            yield self._decoder.take(reply["window"], reply["samples"])
        self.duration_s = reply["duration_s"]
        self._tell(self._waited_s, None)
        self._release()

    def _reply(self) -> dict[str, Any]:
        started = time.monotonic()
        try:
            return self._checked_reply()
        except Exception as error:
            self._tell(self._waited_s + time.monotonic() - started, error)
            raise
        finally:
            self._waited_s += time.monotonic() - started

    def _checked_reply(self) -> dict[str, Any]:
        reply = self._decoder.reply(self._patience_s)
        if "rejected" in reply:
            self._release()
            raise Rejected(Reason(reply["rejected"]), reply["detail"])
        if "bug" in reply:
            self._release()
            raise DecoderBugError(reply["bug"])
        return reply


class Idle:
    """Decoders with nothing to do. Of the threads that wait for one the urgent go first.

    Every so many times another goes first, so that none waits for ever.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._lock = threading.Lock()
        self._decoders: deque[Decoder] = deque()
        self._waiting: dict[bool, deque[Future[Decoder]]] = {True: deque(), False: deque()}
        self._turn = 0

    def get(self, *, urgent: bool) -> Decoder:
        """Take a decoder, as soon as it is this thread's turn."""
        turn: Future[Decoder] = Future()
        with self._lock:
            if self._decoders:
                return self._decoders.popleft()
            self._waiting[urgent].append(turn)
        return turn.result()

    def put(self, decoder: Decoder) -> None:
        """Give a decoder to who waits, or keep it."""
        with self._lock:
            self._turn = (self._turn + 1) % OTHERS_TURN
            first = self._turn != 0
            waiting = self._waiting[first] or self._waiting[not first]
            if waiting:
                waiting.popleft().set_result(decoder)
            else:
                self._decoders.append(decoder)


class Decoders:
    """A pool of decoding processes for many threads."""

    def __init__(
        self,
        count: int,
        patience_s: float,
        memory_bytes: int = MEMORY_BYTES,
        tell: Tell = lambda _, __: None,
    ) -> None:
        """Start ``count`` processes; one that is silent for ``patience_s`` is killed.

        ``tell`` is told of each sound how long was waited for it to be decoded, and the error that
        ended that, if any.
        """
        self._patience_s = patience_s
        self._tell = tell
        self._memory_bytes = memory_bytes
        self._idle = Idle()
        # Linux ends a process of ours with the thread that started it, and callers' threads end.
        self._starter = ThreadPoolExecutor(1, "decoders")
        self._all: set[Decoder] = set()
        for _ in range(count):
            self._start()

    @contextmanager
    def open(
        self, path: Path, max_duration_s: float, *, urgent: bool = True
    ) -> Iterator[DecodedRecording]:
        """Open a sound file as ``core.audio.recording.open_recording`` does, in another process.

        That process is free again as soon as all windows are read. One that hangs or dies is
        replaced, and raises ``Rejected``.
        """
        decoder = self._idle.get(urgent=urgent)
        busy = {decoder}

        def release() -> None:
            busy.remove(decoder)
            self._idle.put(decoder)

        try:
            decoder.ask(path, max_duration_s)
            yield DecodedRecording(decoder, self._patience_s, release, self._tell)
        finally:
            if busy:  # it hangs, is dead, or nobody wants the rest
                self._replace(decoder)

    def close(self) -> None:
        """End all processes, whatever they do."""
        for decoder in self._all:
            decoder.kill()
        self._starter.shutdown()

    def _start(self) -> None:
        decoder = self._starter.submit(Decoder, self._memory_bytes).result()
        self._all.add(decoder)
        self._idle.put(decoder)

    def _replace(self, decoder: Decoder) -> None:
        self._all.remove(decoder)
        decoder.kill()
        self._start()


class _Child:
    """The decoding process itself."""

    def __init__(self, shared: int) -> None:
        self._socket = socket.socket(fileno=0)
        self._memory = np.frombuffer(mmap.mmap(shared, SLOTS * SLOT_BYTES), np.float32)
        self._given = self._taken = 0  # windows of this sound

    def serve(self) -> None:
        """Decode one file after the other, until the parent closes its end."""
        with self._socket.makefile("rb") as requests:
            self._requests = requests
            while line := requests.readline():
                self._serve(**json.loads(line))

    def _serve(self, path: str, max_duration_s: float) -> None:
        self._given = self._taken = 0
        try:
            last = self._decode(Path(path), max_duration_s)
        except Rejected as verdict:
            last = {"rejected": verdict.reason, "detail": verdict.detail}
        except MemoryError:
            last = {"rejected": Reason.CRASHED, "detail": "decoding takes too much memory"}
        except Exception as error:  # noqa: BLE001 - the worker decides what that means
            last = {"bug": f"{type(error).__name__}: {error}"}
        self._reply(last)
        self._wait_for_slots(self._given)

    def _decode(self, path: Path, max_duration_s: float) -> dict[str, Any]:
        with open_recording(path, max_duration_s) as recording:
            self._reply({"sample_rate": recording.sample_rate, "channels": recording.channels})
            for window in recording.windows():
                self._give(window)
            return {"duration_s": recording.duration_s}

    def _give(self, window: Samples) -> None:
        self._wait_for_slots(self._given - SLOTS + 1)
        slot = self._given % SLOTS
        start = slot * WINDOW_SAMPLES
        self._memory[start : start + window.size] = window
        self._reply({"window": slot, "samples": window.size})
        self._given += 1

    def _wait_for_slots(self, taken: int) -> None:
        """Wait until the parent has taken so many windows of this sound."""
        while self._taken < taken:
            if self._requests.read(1) != TAKEN:
                raise SystemExit  # the parent is gone
            self._taken += 1

    def _reply(self, reply: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(reply).encode() + b"\n")


def main(shared: int, memory_bytes: int, parent: int) -> None:
    """Be a decoding process for the worker ``parent``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's to act on
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    if os.getppid() == parent:  # else it died before that
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            _Child(shared).serve()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
