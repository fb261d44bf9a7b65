"""A pool of decoding processes for many threads, which keeps its size."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np

from audiofuse.core.audio.windows import Samples
from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.threads import vital_thread
from audiofuse.workers.indexing.decoding.decoder import Decoder, DecoderDiedError, DecoderHungError
from audiofuse.workers.indexing.decoding.turns import Turns
from audiofuse.workers.indexing.exchange.slab import Slab

log = logging.getLogger(__name__)

MEMORY_BYTES = 2 * 1024**3  # address space of one decoding process. Less: long files may not fit
# Between tries to start a process. Longer: a machine that recovered decodes later.
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.5, 30.0
STOPS = "the worker stops"

Tell = Callable[[float, Exception | None], None]
Around = Callable[[], AbstractContextManager[object]]


class DecoderBugError(Exception):
    """Decoding ended in an exception that says nothing about the sound."""


def _opened(path: Path) -> IO[bytes]:
    """Open a sound file for a decoding process, which may open none."""
    try:
        return path.open("rb", buffering=0)
    except OSError as error:  # it was there a moment ago
        raise DecoderBugError(f"{type(error).__name__}: {error}") from error


class DecodedRecording:
    """A sound file that a decoding process reads; see ``core.audio.recording.Recording``.

    Between two windows the process is free for others.
    """

    def __init__(
        self, pool: "Decoders", path: Path, max_duration_s: float, around: Around, *, urgent: bool
    ) -> None:
        """Wait for a process, and keep it until the first window.

        It opens the sound with that window: to open it alone would take a turn more, which costs as
        much as a short sound's window.
        """
        self._pool = pool
        self._path = path
        self._max_duration_s = max_duration_s
        self._around = around
        self._urgent = urgent
        self._number = next(pool.numbers)
        self._windows = 0
        self._waited_s = 0.0
        self._slot: int | None = None  # that the next window is written into
        self._decoder: Decoder | None = None  # that has it open, or is to open it
        self.duration_s = 0.0
        self.sample_rate = self.channels = 0  # until there is a window
        self._turn = ExitStack()
        with self._noting():
            self._take_turn()

    def windows(self) -> Iterator[Samples]:
        """Yield the clip in windows; see ``core.audio.recording.Recording.windows``.

        Where the pool has a slab of others', each lies in a slot, which goes with it.

        Raises ``Rejected`` for the sound's own fault, a decoding that crashes or hangs included;
        ``Unavailable`` if the worker stops, or the process ended with another sound;
        ``DecoderBugError`` for anything else.
        """
        while self._decoder:
            try:
                answer = self._next()
            except BaseException:  # its process is gone by now, or has told that it will not write
                self._give_back_slot()
                raise
            if not self._windows:
                self.sample_rate, self.channels = answer["sample_rate"], answer["channels"]
            self._windows += 1
            if "duration_s" in answer:
                self.duration_s = answer["duration_s"]
                self._end()
                self._pool.tell(self._waited_s, None)
            if "samples" in answer:
                slot, self._slot = self._slot, None
                assert slot is not None
                yield self._pool.window(slot, answer["samples"])
            else:
                self._give_back_slot()

    def close(self) -> None:
        """Let go of a sound that nobody wants to the end."""
        self._turn.close()  # if there was no window
        if self._decoder:
            self._decoder.forget(self._number)
            self._end()

    def _next(self) -> Any:
        """Have the next window written into a slot, which is taken in one's turn only.

        Those who wait for a process hold none: else the device might have nothing to do while all
        slots wait.
        """
        number, patience_s = self._number, self._pool.patience_s
        with self._noting(), self._turn:
            if self._windows:
                self._take_turn()
            assert self._decoder
            slot = self._slot = self._pool.slab.take()
            with self._around():
                if self._windows:
                    answer = self._decoder.next(number, slot, patience_s)
                else:
                    with _opened(self._path) as file:
                        most_s = self._max_duration_s
                        answer = self._decoder.begin(number, file, most_s, slot, patience_s)
            return self._checked(answer)

    def _take_turn(self) -> None:
        turn = self._pool.turn(self._decoder, urgent=self._urgent, windows=self._windows)
        self._decoder = self._turn.enter_context(turn)

    def _give_back_slot(self) -> None:
        if self._slot is not None:
            self._pool.slab.give_back(self._slot)
            self._slot = None

    def _checked(self, answer: Any) -> Any:
        """Return the answer, unless it says that the sound was closed for a fault."""
        if "rejected" in answer:
            self._end()
            raise Rejected(Reason(answer["rejected"]), answer["detail"])
        if "bug" in answer:
            self._end()
            raise DecoderBugError(answer["bug"])
        return answer

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Note how long something took, and tell what went wrong."""
        started = time.monotonic()
        try:
            yield
        except Exception as error:
            self._pool.tell(self._waited_s + time.monotonic() - started, error)
            raise
        finally:
            self._waited_s += time.monotonic() - started

    def _end(self) -> None:
        if self._decoder:
            self._pool.turns.ended(self._decoder)
        self._decoder = None


class Decoders:
    """A pool of decoding processes for many threads.

    A vital thread of its own starts the processes and replaces those that were killed, with
    back-off, so that the pool keeps its size. While there is none at all, who waits for one gets
    ``Unavailable`` each time that none could be started.
    """

    def __init__(
        self,
        count: int,
        patience_s: float,
        slab: Slab | None = None,
        memory_bytes: int = MEMORY_BYTES,
        tell: Tell = lambda _, __: None,
    ) -> None:
        """Start ``count`` processes; one that is silent for ``patience_s`` is killed.

        Windows stay where they are written, in ``slab``; without one they are copied.

        ``tell`` is told of each sound how many seconds were waited for it to be decoded, and the
        error that ended that, if any.
        """
        self.patience_s = patience_s
        self.slab = slab or Slab(count)
        self._copies = slab is None
        self.numbers = itertools.count()  # of sounds
        self.tell = tell
        self.turns = Turns[Decoder]()
        self._count = count
        self._memory_bytes = memory_bytes
        self._missing = threading.Event()
        self._missing.set()
        self._closed = threading.Event()
        # Linux ends a process of ours with the thread that started it, and callers' threads end.
        self._keeper = vital_thread("decoders", self._keep_size)

    @contextmanager
    def open(
        self,
        path: Path,
        max_duration_s: float,
        *,
        urgent: bool = True,
        around: Around = nullcontext,
    ) -> Iterator[DecodedRecording]:
        """Open a sound file as ``core.audio.recording.open_recording`` does, in another process.

        This waits for a process. Those that are ``urgent`` go first. ``around`` is entered while a
        process decodes a window of it; what it raises, ``windows`` raises.
        """
        recording = DecodedRecording(self, path, max_duration_s, around, urgent=urgent)
        try:
            yield recording
        finally:
            recording.close()

    def window(self, slot: int, samples: int) -> Samples:
        """Return what was decoded into a slot."""
        lent = self.slab.lend(slot, samples)
        if not self._copies:
            return lent
        copied = np.array(lent)
        self.slab.give_back(slot)
        return copied

    @contextmanager
    def turn(self, wanted: Decoder | None, *, urgent: bool, windows: int) -> Iterator[Decoder]:
        """Lend a process for one request; one that hangs or dies meanwhile is replaced."""
        decoder = self.turns.take(wanted, urgent=urgent, windows=windows)
        if wanted is None and decoder.has_ended():  # before it was asked about this sound
            self._lose(decoder)
            raise Unavailable("a decoding process had ended while it was idle")
        try:
            yield decoder
        except DecoderHungError:
            self._lose(decoder)
            detail = f"decoding made no progress for {self.patience_s:.0f} s"
            raise self._verdict(decoder, Reason.HUNG, detail) from None
        except DecoderDiedError:
            self._lose(decoder)
            log.warning("decoding ended its process with code %d", decoder.process.returncode)
            detail = "decoding it ended the process that did"
            raise self._verdict(decoder, Reason.CRASHED, detail) from None
        except (Rejected, DecoderBugError, Unavailable):
            self._give_back(decoder)
            raise
        except BaseException:  # in the middle of an answer: nobody could use it
            self._lose(decoder)
            raise
        else:
            self._give_back(decoder)

    def close(self) -> None:
        """End all processes, whatever they do; who waits for one gets ``Unavailable``."""
        self._closed.set()  # first, so that nobody takes their end for a sound's fault
        self.slab.close()
        idle = self.turns.close(STOPS)
        for decoder in self.turns.processes():
            decoder.kill()
        for decoder in idle:  # whoever uses another lets go of it
            decoder.release()
        self._missing.set()
        self._keeper.join()

    def _verdict(self, decoder: Decoder, reason: Reason, detail: str) -> Exception:
        """Return the sound's own fault, unless the process ended for another reason."""
        if self._closed.is_set():
            return Unavailable(STOPS)
        if not decoder.ready:
            return Unavailable("a decoding process did not start")
        return Rejected(reason, detail)

    def _give_back(self, decoder: Decoder) -> None:
        if not self.turns.give_back(decoder):
            self._lose(decoder)

    def _lose(self, decoder: Decoder) -> None:
        self.turns.remove(decoder)
        decoder.kill()
        decoder.release()
        self._missing.set()

    def _keep_size(self) -> None:
        """Start processes while there are too few, until closed."""
        pause_s = FIRST_BACKOFF_S
        while not self._closed.is_set():
            self._missing.clear()
            if len(self.turns.processes()) >= self._count:
                self._missing.wait()
                continue
            try:
                self._start()
                pause_s = FIRST_BACKOFF_S
            except OSError as error:
                log.warning("no decoding process starts: %s; again in %.1f s", error, pause_s)
                self.turns.refuse(f"no decoding process can be started: {error}")
                self._closed.wait(pause_s)
                pause_s = min(2 * pause_s, MAX_BACKOFF_S)

    def _start(self) -> None:
        decoder = Decoder(self.slab.descriptor, self._memory_bytes)
        try:
            self.turns.add(decoder)
        except Unavailable:  # closed meanwhile
            decoder.kill()
            decoder.release()
