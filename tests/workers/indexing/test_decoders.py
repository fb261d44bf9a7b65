"""Decoding in processes of their own: the same samples, and a bad file costs only itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import psutil
import pytest

from audiofuse.core.audio.recording import WINDOW_SAMPLES, Samples, open_recording
from audiofuse.core.errors import Reason, Rejected
from audiofuse.workers.indexing.decoding.decoders import (
    OTHERS_TURN,
    DecoderBugError,
    Decoders,
    Idle,
)

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL = SOUNDS / "animals/owl.wav"
LONG = SOUNDS / "animals/crickets.wav"


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    """Return two decoding processes."""
    pool = Decoders(2, patience_s=30)
    yield pool
    pool.close()


def _decode(decoders: Decoders, path: Path) -> list[Samples]:
    with decoders.open(path, 60) as recording:
        return list(recording.windows())


def test_a_pool_outlives_the_thread_that_made_it() -> None:
    """Its processes go on when the thread that asked for them has ended."""
    with ThreadPoolExecutor(1) as thread:
        pool = thread.submit(Decoders, 1, 30).result()
    try:
        for _ in range(2):
            assert _decode(pool, OWL)
            time.sleep(0.2)
    finally:
        pool.close()


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"])
def test_another_process_decodes_the_same(decoders: Decoders, suffix: str) -> None:
    """Samples and facts are bit for bit those that decoding in this process gives."""
    path = next(SOUNDS.rglob(f"*{suffix}"))
    with open_recording(path, 60) as here, decoders.open(path, 60) as there:
        expected, windows = list(here.windows()), list(there.windows())
        assert [w.tobytes() for w in windows] == [w.tobytes() for w in expected]
        assert (there.sample_rate, there.channels, there.duration_s) == (
            here.sample_rate, here.channels, here.duration_s,
        )  # fmt: skip


def _wav(path: Path, seconds: int) -> Path:
    """Write a ramp of mono 32 kHz, so that each window differs."""
    samples = (np.arange(seconds * 32_000) % 30_000 + 1).astype("<i2")
    size = samples.nbytes
    header = b"RIFF%sWAVEfmt \x10\0\0\0\1\0\1\0\0\x7d\0\0\0\xfa\0\0\2\0\x10\0data%s"
    path.write_bytes(
        header % ((size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")) + samples.tobytes()
    )
    return path


def test_windows_of_a_long_sound_come_in_order(decoders: Decoders, tmp_path: Path) -> None:
    """Two slots carry any number of windows, none twice and none overwritten."""
    windows = _decode(decoders, _wav(tmp_path / "long.wav", 55))
    assert [window.size for window in windows] == [WINDOW_SAMPLES] * 5 + [WINDOW_SAMPLES // 2]
    joined = np.concatenate(windows) * 32768
    assert np.array_equal(np.rint(joined), np.arange(joined.size) % 30_000 + 1)


def test_bad_files_are_rejected_and_the_process_goes_on(decoders: Decoders, tmp_path: Path) -> None:
    """A verdict crosses over with its reason, and the next file is decoded as ever."""
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "cut.flac").write_bytes((SOUNDS / "animals/crow.flac").read_bytes()[:9000])
    before = {decoder.process.pid for decoder in decoders._all}
    for name, reason in (("text.wav", Reason.NOT_AUDIO), ("cut.flac", Reason.DAMAGED)):
        with pytest.raises(Rejected) as caught:
            _decode(decoders, tmp_path / name)
        assert caught.value.reason is reason
    with pytest.raises(DecoderBugError, match="FileNotFoundError"):
        _decode(decoders, tmp_path / "gone.wav")
    assert _decode(decoders, OWL)
    assert {decoder.process.pid for decoder in decoders._all} == before


def test_a_decoding_that_hangs_is_killed() -> None:
    """A process that gives no sign is killed and replaced; its sound is rejected as hung."""
    decoders = Decoders(1, patience_s=0.5)
    (decoder,) = decoders._all
    _until_ready(decoders)
    os.kill(decoder.process.pid, signal.SIGSTOP)
    with pytest.raises(Rejected) as caught:
        _decode(decoders, OWL)
    assert caught.value.reason is Reason.HUNG
    assert decoder.process.returncode == -signal.SIGKILL
    _until_ready(decoders)
    decoders.close()


def _until_ready(decoders: Decoders) -> None:
    """Let a new process take its time to start."""
    patience_s, decoders._patience_s = decoders._patience_s, 30.0
    assert _decode(decoders, OWL)
    decoders._patience_s = patience_s


def test_a_decoding_that_crashes_costs_its_sound_only() -> None:
    """A process that dies rejects its sound, and the next one is decoded."""
    decoders = Decoders(1, patience_s=30)
    (decoder,) = decoders._all
    _until_ready(decoders)
    decoder.process.kill()
    with pytest.raises(Rejected) as caught:
        _decode(decoders, LONG)
    assert caught.value.reason is Reason.CRASHED
    assert _decode(decoders, OWL)
    decoders.close()


def test_a_sound_that_nobody_wants_to_the_end_costs_nothing(decoders: Decoders) -> None:
    """A reader that gives up in the middle leaves a pool that works."""
    for _ in range(3):
        with pytest.raises(KeyError), decoders.open(LONG, 60):
            raise KeyError
    assert _decode(decoders, OWL)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_a_decoding_that_eats_memory_is_rejected() -> None:
    """A process may not take more than its memory; whatever it does then costs its sound only."""
    script = (
        "import sys, numpy as np\n"
        "from workers import decoders\n"
        "def greedy(self, path, limit): return np.ones(2**28)\n"
        "decoders._Child._decode = greedy\n"
        "decoders.main(*map(int, sys.argv[1:]))\n"
    )
    pool = Decoders(0, patience_s=30)
    run = subprocess.Popen

    def start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        return run([command[0], "-c", script, *command[3:]], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audiofuse.workers.indexing.decoding.decoders.subprocess.Popen", start)
        pool._start()
    with pytest.raises(Rejected) as caught:
        _decode(pool, OWL)
    assert caught.value.reason is Reason.CRASHED
    pool.close()


def test_many_threads_share_few_processes(decoders: Decoders) -> None:
    """Each thread gets its own sound's samples."""
    paths = sorted(SOUNDS.rglob("*.wav")) * 4
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda path: _decode(decoders, path), paths))
    for path, windows in zip(paths, found, strict=True):
        with open_recording(path, 60) as recording:
            expected = list(recording.windows())
        assert all(map(np.array_equal, windows, expected))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's prctl")
def test_decoders_end_with_a_killed_worker(eventually: Callable[..., Any]) -> None:
    """Not even SIGKILL of the worker leaves decoding processes behind."""
    script = (
        "import time\nfrom audiofuse.workers.indexing.decoding.decoders import Decoders\n"
        "Decoders(2, 9)\ntime.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        children = eventually(lambda: psutil.Process(parent.pid).children()[1:] and
                              psutil.Process(parent.pid).children())  # fmt: skip
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def test_the_urgent_go_first_but_not_for_ever() -> None:
    """Of those who wait for a decoder live ones go first; now and then another one does."""
    idle, order = Idle(), []

    def wait(*, urgent: bool) -> None:
        idle.get(urgent=urgent)
        order.append(urgent)

    waits = [*[False] * 3, *[True] * 2 * OTHERS_TURN]
    threads = [Thread(target=partial(wait, urgent=urgent)) for urgent in waits]
    for thread in threads:
        thread.start()
    while sum(map(len, idle._waiting.values())) < len(waits):
        time.sleep(0.001)
    for done in range(1, len(waits) + 1):
        idle.put(object())  # type: ignore[arg-type]
        while len(order) < done:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == ([*[True] * (OTHERS_TURN - 1), False] * 2 + [True, True, False])
