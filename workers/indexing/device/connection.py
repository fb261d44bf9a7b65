"""One message process as the device process sees it: what it asks, and what it is answered."""

import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from audiofuse.core.encoder.embeddings import EncodedItem, Floats
from audiofuse.core.errors import AudiofuseError, Unavailable
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.windows import Cutting, EncodedWindows
from audiofuse.core.threads import vital_thread
from audiofuse.workers.indexing.device.device import Device
from audiofuse.workers.indexing.device.encoders import Encoders
from audiofuse.workers.indexing.device.waiting import Sound
from audiofuse.workers.indexing.exchange.protocol import (
    HELLO,
    Answer,
    failure,
    frames,
    pack,
    pack_answers,
)
from audiofuse.workers.indexing.exchange.slab import SlabMapping
from audiofuse.workers.telemetry.names import Lane

log = logging.getLogger(__name__)

NOT_LOADED = "the device has not loaded this version"

Outgoing = bytes | int | Answer | None  # a frame, a slot that is free, an answer, or the end


class Connection:
    """Reads what a message process asks in one thread, and answers in another.

    So that one which does not read holds up nobody else: what waits to be sent to it is bounded by
    its own asks and slots.
    """

    def __init__(self, connection: socket.socket, encoders: Encoders) -> None:
        """Talk over ``connection``; nothing is read yet."""
        self.working = 0  # messages that the process works on
        self._socket = connection
        self._encoders = encoders
        self._lock = threading.Lock()  # of what the process uses
        self._uses: set[str] = set()
        self._has_ended = False
        self._open: dict[int, tuple[Device, Sound]] = {}
        self._outgoing: queue.SimpleQueue[Outgoing] = queue.SimpleQueue()

    def run(self, ended: Callable[["Connection"], None]) -> None:
        """Serve the process until it ends; then tell ``ended``, and let go of what it used."""
        vital_thread("answers", self._send)
        with suppress(OSError):
            self._read()
        ended(self)
        for _, sound in list(self._open.values()):
            sound.answer.cancel()
        self._outgoing.put(None)
        with self._lock:
            self._has_ended = True
            uses, self._uses = self._uses, set()
        for version in uses:
            self._encoders.drop(version)

    def _read(self) -> None:
        _, descriptors, _, _ = socket.recv_fds(self._socket, len(HELLO), 1)
        if not descriptors:
            return  # it ended before it said anything
        self._slab = SlabMapping(descriptors[0])
        os.close(descriptors[0])
        with self._socket.makefile("rb") as stream:
            for message, vectors in frames(stream):
                self._take(message, vectors)

    def _take(self, message: dict[str, Any], vectors: Floats) -> None:
        self.working = message.get("working", self.working)
        if "use" in message:
            # In a thread of its own: what is asked of other versions goes on.
            vital_thread("use", partial(self._use, message["use"]))
        elif "drop" in message:
            self._drop(message["drop"])
        elif "cancel" in message:
            if found := self._open.pop(message["cancel"], None):
                found[1].answer.cancel()
        elif "fuse" in message:
            self._fuse(message["fuse"], message, vectors)
        else:
            self._encode(message["ask"], message)

    def _use(self, version: str) -> None:
        try:
            facts = self._encoders.use(version)
        except Exception as error:
            if not isinstance(error, AudiofuseError):
                log.exception("encoder %s is not loaded: a bug", version)
            told = failure(error)
        else:
            told = vars(facts)
            with self._lock:
                is_one_too_many = self._has_ended or version in self._uses
                if not is_one_too_many:
                    self._uses.add(version)
            if is_one_too_many:
                self._encoders.drop(version)
        self._outgoing.put(pack({"used": version, **told}))

    def _drop(self, version: str) -> None:
        with self._lock:
            is_used = version in self._uses
            self._uses.discard(version)
        if is_used:
            self._encoders.drop(version)

    def _fuse(self, number: int, message: dict[str, Any], audio: Floats) -> None:
        device = self._encoders.device(message["version"])
        if device is None:
            self._outgoing.put((number, Unavailable(NOT_LOADED)))
            return
        count = message["windows"]
        sound = device.fuse(
            audio.reshape(count, -1) if count else audio,
            message["text"],
            Lane(message["lane"]),
            alone=message["alone"],
            mark=partial(self._mark, number),
        )
        self._await(number, device, sound)

    def _encode(self, number: int, message: dict[str, Any]) -> None:
        if "version" in message:
            self._begin(number, message)
        slot, found = message.get("slot"), self._open.get(number)
        if found is None:  # it was cancelled, failed, or could not begin
            if slot is not None:
                self._outgoing.put(slot)
            return
        device, sound = found
        if slot is not None:
            samples = self._slab.window(slot, message["samples"])
            device.give(sound, samples, partial(self._outgoing.put, slot))
        if message["last"]:
            device.end(sound)

    def _begin(self, number: int, message: dict[str, Any]) -> None:
        device = self._encoders.device(message["version"])
        if device is None:
            self._outgoing.put((number, Unavailable(NOT_LOADED)))
            return
        sound = device.begin(
            message["text"],
            Lane(message["lane"]),
            alone=message["alone"],
            mark=partial(self._mark, number),
            cutting=self._cutting(number, message["grid"]),
        )
        self._await(number, device, sound)

    def _cutting(self, number: int, grid: list[float] | None) -> Cutting | None:
        return Cutting(Grid(*grid), partial(self._tell, number)) if grid else None

    def _tell(self, number: int, windows: EncodedWindows) -> None:
        self._outgoing.put((number, windows))

    def _await(self, number: int, device: Device, sound: Sound) -> None:
        self._open[number] = device, sound
        sound.answer.add_done_callback(partial(self._answered, number))

    def _mark(self, number: int, in_work: bool) -> None:  # noqa: FBT001 - a callback
        self._slab.mark(number, in_work=in_work)

    def _answered(self, number: int, answer: "Future[EncodedItem | EncodedWindows]") -> None:
        self._open.pop(number, None)
        if answer.cancelled():
            return
        error = answer.exception()
        assert error is None or isinstance(error, Exception)
        self._outgoing.put((number, error or answer.result()))

    def _send(self) -> None:
        """Send what there is to say, all at once, until the process ends."""
        with suppress(OSError), self._socket:
            while None not in (things := self._waiting()):
                said = [each for each in things if isinstance(each, bytes)]
                free = [each for each in things if isinstance(each, int)]
                answers = [each for each in things if isinstance(each, tuple)]
                if free or answers:
                    said.append(pack_answers(free, answers))
                self._socket.sendall(b"".join(said))

    def _waiting(self) -> list[Outgoing]:
        """Return all that waits to be sent, once anything does."""
        things = [self._outgoing.get()]
        with suppress(queue.Empty):
            while True:
                things.append(self._outgoing.get_nowait())
        return things
