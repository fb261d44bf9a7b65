"""A message process's side of the device: threads ask, and wait for one answer each.

    encode(windows, text) ──> frames ──> the device process ──> one reading thread ──> the asker

If the device's process ends, whoever waits gets ``Unavailable`` and tries again; who asks while
there is none waits for the next, in which what was loaded is loaded again.
"""

import itertools
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from audiofuse.core.audio.windows import WINDOW_S, WINDOW_SAMPLES, Samples
from audiofuse.core.encoder.embeddings import EncodedItem, Floats, Fused
from audiofuse.core.errors import Unavailable
from audiofuse.core.moments.windows import Cutting, EncodedWindows
from audiofuse.core.threads import vital_thread
from audiofuse.workers.indexing.exchange.ask import Ask, in_step, item_of, take_cut
from audiofuse.workers.indexing.exchange.protocol import (
    HELLO,
    EncoderFacts,
    Message,
    answers_in,
    error_in,
    frames,
    pack,
)
from audiofuse.workers.indexing.exchange.slab import CLOSED, SharedWindow, Slab
from audiofuse.workers.indexing.exchange.suspects import Suspects
from audiofuse.workers.telemetry.names import Lane
from audiofuse.workers.telemetry.tracing import span

log = logging.getLogger(__name__)

CONNECT_S = 0.2  # between two tries to connect. Raised, a new device is noticed later
RELOAD_S = 5.0  # between two tries to have a new device load what is in use; raised, likewise
# Seconds for which an ask waits for a device that is not there. Raised, a message keeps its place
# for longer while none starts; lowered, it goes round while one does.
ABSENT_S = 60.0
GONE = "the device's process ended; it is started again"


class DeviceClient:
    """The device process, for the threads of this one. What it cannot do now is ``Unavailable``."""

    def __init__(self, path: Path, slab: Slab, working: Callable[[], int]) -> None:
        """Ask the device that listens at ``path``; windows cross in ``slab``.

        ``working`` tells how many messages this process works on: as many may ask.
        """
        self._path = path
        self._slab = slab
        self._working = working
        self._suspects = Suspects()
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # of what is open
        self._asks: dict[int, Ask] = {}
        self._lent: dict[int, Ask] = {}  # slots that the device has, and whose windows are in them
        self._used: set[str] = set()
        self._runs_on: dict[str, str] = {}  # by version, as the device that is there told last
        self._loading: dict[str, Future[EncoderFacts]] = {}
        self._sending = threading.Lock()  # of the socket
        self._socket: socket.socket | None = None
        self._ready = threading.Event()  # a device is there, and has what is in use
        self._closed = threading.Event()
        vital_thread("device", self._run)

    def use(self, version: str) -> "Future[EncoderFacts]":
        """Have a version loaded, whichever process is the device; tell what it is once it is.

        The future raises what loading raises.
        """
        with self._lock:
            asked = self._loading.setdefault(version, Future())
        self._send({"use": version})
        return asked

    def drop(self, version: str) -> None:
        """Need a version no more."""
        with self._lock:
            self._used.discard(version)
            self._runs_on.pop(version, None)
        self._send({"drop": version})

    def runs_on(self) -> list[str]:
        """Return on what encodes the device that is there now, for each version."""
        with self._lock:
            return list(self._runs_on.values())

    def on(self, version: str, facts: EncoderFacts, lane: Lane) -> "EncoderOnDevice":
        """Return what encodes by a version that is in use, for messages of one lane."""
        return EncoderOnDevice(self, version, facts, lane)

    def close(self) -> None:
        """Ask no more; whoever waits gets ``Unavailable``."""
        self._closed.set()
        self._slab.close()
        self._hang_up()
        self._fail_all(Unavailable(CLOSED))

    def encode(  # noqa: PLR0913, PLR0917 - what the device is asked
        self,
        version: str,
        lane: Lane,
        sound: str,
        windows: Iterable[Samples],
        text: str,
        ahead: int,
        cutting: Cutting | None = None,
    ) -> EncodedItem:
        """Encode a sound and fuse it with its text; blocks while the device is behind.

        The device is given at most ``ahead`` of its windows before they are encoded: however long
        it is, another's window does not wait behind more than these. If it is cut, its windows are
        taken by this thread, between those that it sends.

        Raises what encoding it alone raises; ``Rejected`` if it does not fit the device, or if the
        device's process keeps ending at it.
        """
        with self._asking(version, lane, sound, text, ahead, is_cut=bool(cutting)) as (ask, first):
            head, is_whole = first | {"grid": cutting and astuple(cutting.grid)}, False
            for window in in_step(windows, ask.room):
                if ask.answer.done():  # it failed: the rest is read only for what it says of itself
                    self._give_back(window)
                    ask.room.release()
                    continue
                is_whole = window.size < WINDOW_SAMPLES
                self._send_window(ask, window, head | {"last": is_whole})
                head = {}
                if cutting:
                    take_cut(ask, cutting, wait=False)
            if not is_whole:
                self._send(head | {"ask": ask.number, "last": True}, to=ask.connection)
            if cutting:
                take_cut(ask, cutting, wait=True)
            return item_of(ask)

    def fuse(self, version: str, lane: Lane, sound: str, audio: Floats, text: str) -> EncodedItem:
        """Fuse a stored audio vector with a text."""
        with self._asking(version, lane, sound, text) as (ask, first):
            self._send({"fuse": ask.number, **first, "windows": 0}, [audio], to=ask.connection)
            return item_of(ask)

    def fuse_windows(self, version: str, lane: Lane, sound: str, audio: Floats, text: str) -> Fused:
        """Fuse stored audio vectors of a recording's windows, at least one, with a text."""
        with self._asking(version, lane, sound, text) as (ask, first):
            about = {"fuse": ask.number, **first, "windows": len(audio)}
            self._send(about, [audio], to=ask.connection)
            answer = ask.answer.result()
            assert isinstance(answer, EncodedWindows)
            return answer.fused

    @contextmanager
    def _asking(  # noqa: PLR0913 - as above
        self,
        version: str,
        lane: Lane,
        sound: str,
        text: str,
        ahead: int = 1,
        *,
        is_cut: bool = False,
    ) -> Iterator[tuple[Ask, dict[str, Any]]]:
        """Open an ask; yield it, and what its first frame says."""
        self._await_device()
        alone = self._suspects.is_one(sound)
        ask = self._open(sound, ahead, is_cut=is_cut)
        try:
            yield ask, {
                "version": version, "lane": lane, "text": text, "alone": alone,
                "working": self._working(),
            }  # fmt: skip
        finally:
            with self._lock:
                is_open = self._asks.pop(ask.number, None)
            if is_open:
                self._send({"cancel": ask.number}, to=ask.connection)
        if alone:
            self._suspects.clear(sound)

    def _open(self, sound: str, ahead: int, *, is_cut: bool) -> Ask:
        with self._lock:
            if not self._ready.is_set():  # else ``_lost`` finds it
                raise Unavailable(GONE)
            room = threading.Semaphore(ahead)
            ask = Ask(next(self._numbers), sound, self._socket, room, is_cut)
            self._asks[ask.number] = ask
        return ask

    def _send_window(self, ask: Ask, window: Samples, message: dict[str, Any]) -> None:
        """Hand a window over, in the slot where a decoder wrote it, or in a new one."""
        if not isinstance(window, SharedWindow):
            shared = self._slab.lend(self._slab.take(), window.size)
            shared[:] = window
            window = shared
        with self._lock:
            is_open = ask.number in self._asks
            if is_open:
                self._lent[window.slot] = ask
        if is_open:
            about = {"ask": ask.number, "slot": window.slot, "samples": window.size}
            self._send(message | about, to=ask.connection)
        else:
            self._give_back(window)
            ask.room.release()

    def _give_back(self, window: Samples) -> None:
        if isinstance(window, SharedWindow):
            self._slab.give_back(window.slot)

    def _send(
        self,
        message: dict[str, Any],
        vectors: Sequence[Floats] = (),
        *,
        to: socket.socket | None = None,
    ) -> None:
        """Send a frame to the device, or to no other than that of one's ask.

        What a device does not get because it ends, ``_lost`` makes up for.
        """
        frame = pack(message, vectors)
        with self._sending, suppress(OSError):
            if self._socket and to in {None, self._socket}:
                self._socket.sendall(frame)

    def _await_device(self) -> None:
        if not self._ready.wait(ABSENT_S):
            raise Unavailable(f"for {ABSENT_S:.0f} s there was no device process")
        if self._closed.is_set():
            raise Unavailable(CLOSED)

    def _run(self) -> None:
        """Talk to one device after the other, until closed."""
        while not self._closed.is_set():
            try:
                connection = self._connect()
            except OSError as error:
                log.debug("the device's process does not listen: %s", error)
                self._closed.wait(CONNECT_S)
                continue
            has_loaded = self._talk(connection)
            self._ready.clear()
            self._hang_up()
            self._lost()
            if not has_loaded:
                self._closed.wait(RELOAD_S)
        self._ready.set()  # who waits for a device learns that this is closed

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self._path))
            socket.send_fds(connection, [HELLO], [self._slab.descriptor])
        except OSError:
            connection.close()
            raise
        with self._sending:
            self._socket = connection
        return connection

    def _talk(self, connection: socket.socket) -> bool:
        """Read until this device ends; false if it did not load what is in use."""
        with self._lock:
            missing, wanted = set(self._used), self._used | self._loading.keys()
        for version in wanted:
            self._send({"use": version})
        if not missing:
            self._ready.set()
        with suppress(OSError), connection.makefile("rb") as stream:
            for message, vectors in frames(stream):
                if "used" not in message:
                    self._answered(message, vectors)
                    continue
                version, error = message["used"], self._loaded(message)
                if error and version in missing:
                    log.error("a new device does not load %s, which is in use: %s", version, error)
                    return False
                missing.discard(version)
                if not missing:
                    self._ready.set()
        return True

    def _loaded(self, message: dict[str, Any]) -> Exception | None:
        """Tell who waits for a version to be loaded; return what went wrong."""
        version = message.pop("used")
        error = error_in(message) if "error" in message else None
        facts = None if error else EncoderFacts(**message)
        with self._lock:
            waiting = self._loading.pop(version, None)
            if waiting and facts:
                self._used.add(version)
            if facts and version in self._used:
                self._runs_on[version] = facts.runs_on
        if waiting and error:
            waiting.set_exception(error)
        elif waiting and facts:
            waiting.set_result(facts)
        return error

    def _answered(self, message: Message, vectors: Floats) -> None:
        with self._lock:
            freed = [(slot, self._lent.pop(slot)) for slot in message["free"]]
        for slot, owner in freed:
            self._slab.give_back(slot)
            owner.room.release()
        for number, answer in answers_in(message, vectors):
            with self._lock:
                ask = self._asks.get(number)
                if ask is None:
                    continue  # it was cancelled
                if ask.is_cut and isinstance(answer, EncodedWindows):
                    ask.cut.put(answer)
                    continue
                del self._asks[number]
            if isinstance(answer, Exception):
                ask.answer.set_exception(answer)
            else:
                ask.answer.set_result(answer)

    def _lost(self) -> None:
        """Make up for a device that is no more: it has no slots, and answers nobody."""
        with self._lock:
            lent, self._lent = self._lent, {}
            self._runs_on.clear()
            died_of = [ask.sound for ask in self._asks.values() if self._slab.in_work(ask.number)]
        self._slab.clear_marks()
        self._suspects.died_of(died_of)
        if not self._closed.is_set():
            log.warning("%s; it was at work on: %s", GONE, ", ".join(died_of) or "nothing of ours")
        self._fail_all(Unavailable(GONE))
        for slot, ask in lent.items():
            self._slab.give_back(slot)
            ask.room.release()

    def _fail_all(self, error: Exception) -> None:
        with self._lock:
            asks, self._asks = self._asks, {}
        for ask in asks.values():
            ask.answer.set_exception(error)

    def _hang_up(self) -> None:
        """End the connection, which ends who reads from it."""
        connection = self._socket
        if connection is None:
            return
        with suppress(OSError):  # it has ended by itself
            connection.shutdown(socket.SHUT_RDWR)
        with self._sending:
            self._socket = None
            connection.close()


class EncoderOnDevice:
    """An encoder that the device has loaded, for messages of one lane; see ``AudioEncoder``."""

    def __init__(self, device: DeviceClient, version: str, facts: EncoderFacts, lane: Lane) -> None:
        """Ask ``device`` for what ``version`` makes of sounds."""
        self._device = device
        self._version = version
        self._lane = lane
        self._ahead = max(1, int(facts.batch_s // WINDOW_S))  # a batch of its own
        self.fuses_stored_audio = facts.fuses_stored_audio

    def encode(
        self, sound: str, windows: Iterable[Samples], text: str, cutting: Cutting | None = None
    ) -> EncodedItem:
        """Encode a sound and fuse it with its text, cut or not."""
        with span("encode"):
            return self._device.encode(
                self._version, self._lane, sound, windows, text, self._ahead, cutting
            )

    def fuse(self, sound: str, audio: Floats, text: str) -> EncodedItem:
        """Fuse a stored audio vector with a text."""
        with span("fuse"):
            return self._device.fuse(self._version, self._lane, sound, audio, text)

    def fuse_windows(self, sound: str, audio: Floats, text: str) -> Fused:
        """Fuse stored audio vectors of a recording's windows with a text."""
        with span("fuse"):
            return self._device.fuse_windows(self._version, self._lane, sound, audio, text)
