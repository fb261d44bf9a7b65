"""The worker's side of one decoding process; used by one thread at a time."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from audiofuse.core.cores import thread_limits

CHILD = "audiofuse.workers.indexing.decoding.child"


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
        self.ready = False  # it has told that it started
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
            command, stdin=theirs.fileno(), pass_fds=[slab], env=os.environ | thread_limits(1)
        )

    def begin(
        self, number: int, path: Path, max_duration_s: float, slot: int, patience_s: float
    ) -> Any:
        """Open a sound file under a number of one's own; have its first window written."""
        request = {"open": number, "path": str(path), "max_duration_s": max_duration_s}
        return self._ask(request | {"slot": slot}, patience_s)

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

    def _ask(self, request: dict[str, Any], patience_s: float) -> Any:
        """Return the answer; ``DecoderHungError`` or ``DecoderDiedError`` if none comes."""
        self._send(request)
        if not self.ready:
            self._receive_answer(patience_s)
            self.ready = True
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

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending, contextlib.suppress(OSError):  # it is dead: the answer will tell
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except ConnectionResetError:
            return b""
