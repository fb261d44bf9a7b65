"""The worker's side of one decoding process; used by one thread at a time."""

import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from audiofuse.core.audio.confinement import Confinement, bare_environment

log = logging.getLogger(__name__)

CHILD = "audiofuse.workers.indexing.decoding.child"
# Memory that glibc keeps for the next sound. Of itself it gives buffers of 128 KiB and more back to
# the kernel with each sound, and fetching them page by page takes as long as decoding. Raised, a
# process keeps more after a large file; lowered below a few windows, sounds cost more. In bytes.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(16 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20)}


class DecoderHungError(Exception):
    """The process gave no sign for as long as it may."""


class DecoderDiedError(Exception):
    """The process is no more."""


class Decoder:
    """One decoding process."""

    def __init__(self, slab: int, memory_bytes: int) -> None:
        """Start it; it may take at most ``memory_bytes`` of address space.

        It writes windows into the slab behind the descriptor ``slab``.

        It ends with the thread that calls this. Raises ``OSError`` where no process can be had.
        """
        self._answers = b""  # received, not yet read
        self.confined: Confinement | None = None  # until it has told that it started
        self._sending = threading.Lock()
        with contextlib.ExitStack() as undo:
            self._socket, theirs = socket.socketpair()
            undo.enter_context(self._socket)
            with theirs:
                self.process = self._start(theirs, slab, memory_bytes)
            self._poll = select.poll()  # select() ends at 1,024 descriptors
            self._poll.register(self._socket, select.POLLIN)
            undo.pop_all()

    def _start(
        self, theirs: socket.socket, slab: int, memory_bytes: int
    ) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", CHILD, str(slab), str(memory_bytes), str(os.getpid())]
        return subprocess.Popen(  # noqa: S603 - ourselves
            command, stdin=theirs.fileno(), pass_fds=[slab], env={**KEPT, **bare_environment()}
        )

    def begin(
        self, number: int, file: IO[bytes], max_duration_s: float, slot: int, patience_s: float
    ) -> Any:
        """Hand over a sound file under a number of one's own; have its first window written.

        It goes as an open file, because the process may open none. The caller closes it.
        """
        request = {"open": number, "max_duration_s": max_duration_s, "slot": slot}
        return self._ask(request, patience_s, [file.fileno()])

    def next(self, number: int, slot: int, patience_s: float) -> Any:
        """Have the next window of a sound, if there is one, written into a slot."""
        return self._ask({"next": number, "slot": slot}, patience_s)

    def forget(self, number: int) -> None:
        """Have a sound closed that nobody wants to the end; any thread may, at any time."""
        self._send({"close": number})

    def has_ended(self) -> bool:
        """Whether the process is no more."""
        return self.process.poll() is not None

    def kill(self) -> None:
        """End the process at once, and wake up who waits for its answer; any thread may."""
        self.process.kill()
        self.process.wait()

    def release(self) -> None:
        """Give back the descriptors of a process that was killed and that nobody uses."""
        self._socket.close()

    @property
    def ready(self) -> bool:
        """Whether it has told that it started."""
        return self.confined is not None

    def _ask(self, request: dict[str, Any], patience_s: float, files: Sequence[int] = ()) -> Any:
        """Return the answer; ``DecoderHungError`` or ``DecoderDiedError`` if none comes."""
        self._send(request, files)
        if not self.ready:
            self.confined = Confinement[self._receive_answer(patience_s)["ready"]]
            log.info("a decoding process is confined: %s", self.confined.value)
        return self._receive_answer(patience_s)

    def _receive_answer(self, patience_s: float) -> Any:
        while b"\n" not in self._answers:
            if not self._poll.poll(patience_s * 1000):  # milliseconds
                raise DecoderHungError
            received = self._receive()
            if not received:
                raise DecoderDiedError
            self._answers += received
        line, _, self._answers = self._answers.partition(b"\n")
        return json.loads(line)

    def _send(self, message: dict[str, Any], files: Sequence[int] = ()) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._sending, contextlib.suppress(OSError):  # it is dead: the answer will tell
            if files:
                socket.send_fds(self._socket, [line], files)
            else:
                self._socket.sendall(line)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except ConnectionResetError:
            return b""
