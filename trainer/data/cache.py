"""Decoded audio on disk: each clip is decoded once, then read at random without decoding.

A clip is one ``.npy`` file of mono int16 at 32 kHz, half the size of float32; what is beyond full
scale is clipped. The file's name holds all else: where the clip came from, its length, its content.
So one rename makes an entry, and a run that was killed leaves only whole ones. While no run uses
them, its unfinished ``.part`` files may be deleted, and so may the whole folder.

Decoding happens in spawned processes, so a script that prepares a cache needs a main guard. This
module reaches no torch, because each of those processes imports it.
"""

import hashlib
import multiprocessing
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.cores import usable_cpus
from audiofuse.core.errors import ConfigurationError, Reason, Rejected
from audiofuse.core.evaluation.clips import Clip

FULL_SCALE = 32768  # what a sample of 1.0 is in int16
NAME = re.compile(r"([0-9a-f]{32})-(\d+)-([0-9a-f]{64})\.npy")  # key, samples, content

# Seconds for one file, hours of audio included. More waits longer for a decoder that hangs; less
# leaves out long recordings on slow disks.
MOST_DECODE_S = 600

Work = TypeVar("Work")


class Progress(Protocol):
    """Passes on what it is given and shows how far that got, as ``rich.progress.track`` does."""

    def __call__(self, work: Sequence[Work], /) -> Iterable[Work]:
        """Yield each part of the work, in order."""


def no_progress(work: Sequence[Work]) -> Iterable[Work]:
    """Show no progress."""
    return work


@dataclass(frozen=True)
class Entry:
    """A decoded clip: its file, its length in samples, the sha256 of its samples in hex."""

    file: Path
    samples: int
    content: str


@dataclass(frozen=True)
class Prepared:
    """What can be read, by the clips' paths, and the clips that cannot, with the reason."""

    entries: dict[Path, Entry]
    rejected: list[tuple[Clip, Rejected]]

    @property
    def contents(self) -> dict[Path, str]:
        """The content of each file: the same for files that decode to the same samples."""
        return {path: entry.content for path, entry in self.entries.items()}


class _Source(NamedTuple):
    """A file to decode; the key stands for it as it is now."""

    path: Path
    key: str


class _Verdict(NamedTuple):
    """Why a file cannot be decoded. Unlike ``Rejected`` it can be sent between processes."""

    reason: Reason
    detail: str


class AudioCache:
    """A folder of decoded clips. Several runs may share it, even at the same time."""

    def __init__(self, folder: Path, max_duration_s: float, workers: int | None = None) -> None:
        """Keep clips of at most ``max_duration_s`` in ``folder``; decode in ``workers`` processes.

        By default there are as many workers as processors.
        """
        self.folder = folder
        self._max_duration_s = max_duration_s
        self._workers = workers or usable_cpus()

    def prepare(self, clips: Iterable[Clip], progress: Progress = no_progress) -> Prepared:
        """Decode what is not decoded yet; what could not be decoded is tried again.

        Raises ``ConfigurationError`` when the folder cannot be written to.
        """
        clips = list(clips)
        known = self._known()
        found = {path: self._look(path, known) for path in dict.fromkeys(c.path for c in clips)}
        missing = [value for value in found.values() if isinstance(value, _Source)]
        found |= self._decode_all(missing, progress)
        return Prepared(
            {path: value for path, value in found.items() if isinstance(value, Entry)},
            [
                (clip, Rejected(*verdict))
                for clip in clips
                if isinstance(verdict := found[clip.path], _Verdict)
            ],
        )

    def _known(self) -> dict[str, Entry]:
        """Return the entries by key, but none that a crash of the machine cut short."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            named = [(NAME.fullmatch(file.name), file) for file in self.folder.iterdir()]
            return {
                name[1]: Entry(file, int(name[2]), name[3])
                for name, file in named
                if name and file.stat().st_size > int(name[2]) * np.dtype(np.int16).itemsize
            }
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(f"the audio cache {self.folder} cannot be used: {error}")

    def _look(self, path: Path, known: dict[str, Entry]) -> Entry | _Verdict | _Source:
        try:
            key = _key(path)
        except OSError as error:
            return _Verdict(Reason.NOT_AUDIO, f"the file cannot be read: {error.strerror}")
        return self._within_limit(known[key]) if key in known else _Source(path, key)

    def _within_limit(self, entry: Entry) -> Entry | _Verdict:
        """Judge as decoding would: the entry may have been made under a higher limit."""
        duration_s = entry.samples / SAMPLE_RATE
        if duration_s <= self._max_duration_s:
            return entry
        detail = f"{duration_s:.0f} s; the limit is {self._max_duration_s:.0f} s"
        return _Verdict(Reason.TOO_LONG, detail)

    def _decode_all(
        self, sources: Sequence[_Source], progress: Progress
    ) -> dict[Path, Entry | _Verdict]:
        """Decode in parallel; a file that kills the process that decodes it costs only itself.

        A process that dies takes its pool along and nothing tells what it was at. So one worker
        goes on, until it dies as well: then it was at the first file without a result.
        """
        found: dict[Path, Entry | _Verdict] = {}
        workers = self._workers
        while waiting := [source for source in sources if source.path not in found]:
            whole = self._decode_until_broken(waiting, workers, found, progress)
            if not whole and workers == 1:
                culprit = next(source.path for source in waiting if source.path not in found)
                found[culprit] = _Verdict(
                    Reason.DAMAGED,
                    f"it kills the process that decodes it, or takes over {MOST_DECODE_S} s",
                )
                workers = self._workers
            else:
                workers = 1
        return found

    def _decode_until_broken(
        self,
        sources: Sequence[_Source],
        workers: int,
        found: dict[Path, Entry | _Verdict],
        progress: Progress,
    ) -> bool:
        """Decode into ``found``, in order; return whether the pool was whole to the end."""
        pool = _start_pool(min(workers, len(sources)))
        decode = partial(_decode, folder=self.folder, max_duration_s=self._max_duration_s)
        try:
            futures = [pool.submit(decode, source) for source in sources]
            for source, future in zip(sources, progress(futures), strict=True):
                found[source.path] = future.result()
        except BrokenProcessPool:
            return False
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            pool.shutdown(cancel_futures=True)  # on Ctrl-C, what is decoded by now is kept
        return True


def read(entry: Entry, start: int, count: int) -> Samples:
    """Read ``count`` samples from ``start`` as float32, full scale 1; fewer at the clip's end.

    Only what is asked for is read from the disk.
    """
    samples: NDArray[np.int16] = np.load(entry.file, mmap_mode="r")
    return samples[start : start + count].astype(np.float32) / np.float32(FULL_SCALE)


def _key(path: Path) -> str:
    stat = path.stat()
    state = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    return hashlib.sha256(os.fsencode(state)).hexdigest()[:32]


def _start_pool(workers: int) -> ProcessPoolExecutor:
    """Start spawned processes: forked ones would inherit the locks of the caller's threads."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    pool.submit(int).result()  # a pool that cannot even start is no file's fault
    return pool


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent was killed, which it would not notice by itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _decode(source: _Source, folder: Path, max_duration_s: float) -> Entry | _Verdict:
    """Decode one file into the folder; a broken one leaves nothing there."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as file:
        part = Path(file.name)
        try:
            signal.alarm(
                MOST_DECODE_S
            )  # the kernel ends this process: a hung decoder runs no Python
            with open_recording(source.path, max_duration_s) as recording:
                samples, content = _write(recording.windows(), file)
            return Entry(
                part.rename(folder / f"{source.key}-{samples}-{content}.npy"), samples, content
            )
        except Rejected as error:
            return _Verdict(error.reason, error.detail)
        except OSError:  # the folder is at fault, not the file
            raise
        except Exception as error:  # noqa: BLE001 - one file of many must not end them all
            return _Verdict(Reason.BUG, repr(error))
        finally:
            signal.alarm(0)
            part.unlink(missing_ok=True)


def _write(windows: Iterable[Samples], file: IO[bytes]) -> tuple[int, str]:
    """Write windows as one array while they come; return the number of samples and their sha256."""
    digest, samples = hashlib.sha256(), 0
    _write_header(file, 0)
    for window in windows:
        scaled = np.clip(np.rint(window * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1)
        content = scaled.astype("<i2").tobytes()
        file.write(content)
        digest.update(content)
        samples += window.size
    file.seek(0)
    _write_header(file, samples)
    file.flush()
    return samples, digest.hexdigest()


def _write_header(file: IO[bytes], samples: int) -> None:
    """Write the head of an ``.npy`` file, which NumPy pads so that the length can be changed."""
    shape = {"descr": "<i2", "fortran_order": False, "shape": (samples,)}
    np.lib.format.write_array_header_1_0(file, shape)
