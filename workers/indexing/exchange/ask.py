"""What one thread of a message process asks of the device, and how it waits for it."""

import queue
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.embeddings import EncodedItem
from audiofuse.core.moments.windows import Cutting, EncodedWindows


@dataclass(eq=False)
class Ask:
    """A sound that a thread wants encoded and fused, by the device behind ``connection``.

    ``room`` is for windows that the device has of it. Of a sound that is cut, ``cut`` has what the
    device gave so far, and ``None`` once it is answered: little, since who asks takes that before
    it sends more.
    """

    number: int
    sound: str
    connection: socket.socket | None
    room: threading.Semaphore
    is_cut: bool = False
    cut: "queue.SimpleQueue[EncodedWindows | None]" = field(default_factory=queue.SimpleQueue)
    answer: "Future[EncodedItem | EncodedWindows]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        """Let who takes what was cut know when it is all."""
        if self.is_cut:
            self.answer.add_done_callback(lambda _: self.cut.put(None))


def in_step(windows: Iterable[Samples], room: threading.Semaphore) -> Iterator[Samples]:
    """Yield windows, each once there is room for it: before, none is decoded."""
    windows = iter(windows)
    while True:
        room.acquire()
        window = next(windows, None)
        if window is None:
            return
        yield window


def take_cut(ask: Ask, cutting: Cutting, *, wait: bool) -> None:
    """Hand over what is cut by now, or, with ``wait``, until the sound is answered."""
    with suppress(queue.Empty):
        while cut := ask.cut.get(block=wait):
            cutting.take(cut)
        ask.cut.put(None)  # whoever looks again, perhaps to wait, must see the end, too


def item_of(ask: Ask) -> EncodedItem:
    """Wait for the answer to a sound."""
    answer = ask.answer.result()
    assert isinstance(answer, EncodedItem)
    return answer
