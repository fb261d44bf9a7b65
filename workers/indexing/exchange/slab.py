"""The memory in which windows cross from decoders to the device, without a copy on the way.

    message process   owns a slab, and lends its slots
    its decoders      write a window into the slot that they are told
    the device        reads it, and tells that the slot is free

A slab belongs to one message process, so that nobody's window is written to by another's decoder,
however that ends. Its first page tells which of the process's asks the device works on: it survives
the device's process, which may have died of one of them.
"""

import mmap
import os
import tempfile
import threading
import weakref
from typing import Any

import numpy as np

from audiofuse.core.audio.windows import WINDOW_SAMPLES, Samples
from audiofuse.core.errors import Unavailable

WINDOW_BYTES = WINDOW_SAMPLES * 4  # float32
FLAGS = 4096  # one byte for each ask, by its number modulo this; far more than can be open at once
CLOSED = "the worker stops"


class SharedWindow(np.ndarray[Any, np.dtype[np.float32]]):
    """Samples that lie in a slot of a slab."""

    slot: int


class SlabMapping:
    """A slab as a process sees it that has mapped it."""

    def __init__(self, descriptor: int) -> None:
        """Map the memory behind a descriptor, which may be closed afterwards."""
        self._bytes = mmap.mmap(descriptor, 0)
        self._flags = np.frombuffer(self._bytes, np.uint8, FLAGS)
        self._windows = np.frombuffer(self._bytes, np.float32, offset=FLAGS)

    def window(self, slot: int, samples: int) -> Samples:
        """Return the first ``samples`` of a slot, to be read or written."""
        start = slot * WINDOW_SAMPLES
        return self._windows[start : start + samples]

    def mark(self, ask: int, *, in_work: bool) -> None:
        """Tell whether the device works on an ask."""
        self._flags[ask % FLAGS] = in_work

    def in_work(self, ask: int) -> bool:
        """Whether the device worked on an ask, when it last told."""
        return bool(self._flags[ask % FLAGS])

    def clear_marks(self) -> None:
        """Forget what a device worked on that is no more."""
        self._flags[:] = 0


class Slab(SlabMapping):
    """The slab of this process, whose slots many threads take and give back."""

    def __init__(self, slots: int) -> None:
        """Have room for so many windows; memory is taken as they are used."""
        self.descriptor = _memory_file()
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, FLAGS + slots * WINDOW_BYTES)
        super().__init__(self.descriptor)
        # The last that was given back is lent first, so that few of them are ever touched.
        self._free = list(reversed(range(slots)))
        self._changed = threading.Condition()
        self._closed = False

    @property
    def free(self) -> int:
        """How many slots nobody has."""
        return len(self._free)

    def take(self) -> int:
        """Wait for a free slot; ``Unavailable`` once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._closed)
            if self._closed:
                raise Unavailable(CLOSED)
            return self._free.pop()

    def give_back(self, slot: int) -> None:
        """Let somebody else have a slot."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def lend(self, slot: int, samples: int) -> SharedWindow:
        """Return the window in a slot, which goes with it to whoever takes it over."""
        window = self.window(slot, samples).view(SharedWindow)
        window.slot = slot
        return window

    def close(self) -> None:
        """Refuse whoever waits for a slot, or comes to."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _memory_file() -> int:
    """Return a file to map; where that is possible one that the kernel never writes to a disk."""
    create = getattr(os, "memfd_create", None)  # Linux has it
    if create:
        return int(create("audiofuse-windows"))
    with tempfile.TemporaryFile(prefix="audiofuse-windows-") as file:
        return os.dup(file.fileno())
