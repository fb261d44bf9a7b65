"""Decoding in processes of their own: the same samples, and a bad file costs only itself."""

import itertools
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from audiofuse.core.audio.confinement import how_far
from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import WINDOW_SAMPLES, Samples
from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.workers.indexing.decoding import decoder as decoder_module
from audiofuse.workers.indexing.decoding import pool as pool_module
from audiofuse.workers.indexing.decoding.decoder import Decoder
from audiofuse.workers.indexing.decoding.pool import DecoderBugError, Decoders

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL = SOUNDS / "animals/owl.wav"
LONG = SOUNDS / "animals/crickets.wav"


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    """Return two decoding processes."""
    pool = Decoders(2, patience_s=60)
    yield pool
    pool.close()


def _decode(decoders: Decoders, path: Path) -> list[Samples]:
    with decoders.open(path, 60) as recording:
        return list(recording.windows())


def test_a_pool_outlives_the_thread_that_made_it() -> None:
    """Its processes go on when the thread that asked for them has ended."""
    with ThreadPoolExecutor(1) as thread:
        pool = thread.submit(Decoders, 1, 60).result()
    try:
        for _ in range(2):
            assert _decode(pool, OWL)
    finally:
        pool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counts")
def test_memory_is_kept_from_one_sound_to_the_next(decoders: Decoders) -> None:
    """Once a process has decoded a sound, the next takes no pages from the kernel."""

    def faults() -> int:
        stats = [Path(f"/proc/{each.process.pid}/stat") for each in decoders.turns.processes()]
        return sum(int(each.read_text().rpartition(")")[2].split()[7]) for each in stats)

    seen = [faults()]
    for _ in range(12):
        _decode(decoders, LONG)
        seen.append(faults())
    # Of one of them at least: some machines take pages away from whoever does not use them.
    assert min(after - before for before, after in itertools.pairwise(seen)) < 30


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a"])
def test_another_process_decodes_the_same(decoders: Decoders, suffix: str) -> None:
    """Samples and facts are bit for bit those that decoding in this process gives."""
    path = max(SOUNDS.rglob(f"*{suffix}"))
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
    _decode(decoders, OWL)
    before = _pids(decoders)
    for name, reason in (("text.wav", Reason.NOT_AUDIO), ("cut.flac", Reason.DAMAGED)):
        with pytest.raises(Rejected) as caught:
            _decode(decoders, tmp_path / name)
        assert caught.value.reason is reason
    with pytest.raises(DecoderBugError, match="FileNotFoundError"):
        _decode(decoders, tmp_path / "gone.wav")
    assert _decode(decoders, OWL)
    assert _pids(decoders) == before


def test_what_surrounds_decoding_knows_each_window(decoders: Decoders, tmp_path: Path) -> None:
    """It is entered for a window and left before that is handed on; what it raises costs nobody."""
    seen: list[str] = []

    @contextmanager
    def around() -> Iterator[None]:
        seen.append("begins")
        yield
        seen.append("ends")

    with decoders.open(_wav(tmp_path / "long.wav", 25), 60, around=around) as recording:
        for number, _ in enumerate(recording.windows(), 1):
            assert seen == ["begins", "ends"] * number
    before = _pids(decoders)

    @contextmanager
    def away() -> Iterator[None]:
        raise Unavailable("nobody counts")
        yield

    with decoders.open(OWL, 60, around=away) as recording, pytest.raises(Unavailable):
        next(recording.windows())
    assert _decode(decoders, OWL)
    assert _pids(decoders) == before


def _pids(decoders: Decoders) -> set[int]:
    return {decoder.process.pid for decoder in decoders.turns.processes()}


def _only(decoders: Decoders) -> Decoder:
    """Return the only process of a pool, once it has started."""
    assert _decode(decoders, OWL)
    (decoder,) = decoders.turns.processes()
    return decoder


def test_a_decoding_that_hangs_is_killed() -> None:
    """A process that gives no sign is killed and replaced; its sound is rejected as hung."""
    with closing(Decoders(1, patience_s=60)) as decoders:
        decoder = _only(decoders)
        os.kill(decoder.process.pid, signal.SIGSTOP)
        decoders.patience_s = 0.2
        with pytest.raises(Rejected) as caught:
            _decode(decoders, OWL)
        assert caught.value.reason is Reason.HUNG
        assert decoder.process.returncode == -signal.SIGKILL
        decoders.patience_s = 60
        assert _only(decoders) is not decoder


def test_a_decoding_that_crashes_costs_its_sound_only(
    tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    """A process that dies rejects the sound it was at; others that it had open are tried again."""
    with closing(Decoders(1, patience_s=60)) as decoders, ThreadPoolExecutor(1) as thread:
        decoder = _only(decoders)
        with decoders.open(_wav(tmp_path / "long.wav", 30), 60) as other:
            rest = other.windows()
            next(rest)
            os.kill(decoder.process.pid, signal.SIGSTOP)
            decoding = thread.submit(_decode, decoders, OWL)
            eventually(lambda: not decoders.turns.idle())
            decoder.process.kill()
            verdict = decoding.exception()
            assert isinstance(verdict, Rejected)
            assert verdict.reason is Reason.CRASHED
            with pytest.raises(Unavailable, match="another sound"):
                list(rest)
        assert _decode(decoders, LONG)


def test_a_process_that_ended_while_it_was_idle_is_no_fault_of_the_next_sound() -> None:
    """Whoever finds it so tries again later, with the process in its place."""
    with closing(Decoders(1, patience_s=60)) as decoders:
        decoder = _only(decoders)
        decoder.process.kill()
        decoder.process.wait()
        with pytest.raises(Unavailable, match="idle"):
            _decode(decoders, OWL)
        assert _only(decoders) is not decoder


def test_a_process_that_does_not_start_is_no_fault_of_the_sound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A child that dies before it is ready makes nobody's dead letter."""
    monkeypatch.setattr(decoder_module, "CHILD", "no_such_module")
    with closing(Decoders(1, patience_s=60)) as decoders, pytest.raises(Unavailable):
        _decode(decoders, OWL)


def test_a_pool_keeps_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """While no process can be started who waits is told so; later the pool is whole again."""
    monkeypatch.setattr(pool_module, "FIRST_BACKOFF_S", 0.01)
    with closing(Decoders(1, patience_s=60)) as decoders:
        decoder = _only(decoders)
        failing = threading.Event()
        failing.set()
        start = decoder_module.Decoder._start

        def fail_first(*arguments: Any) -> Any:
            if failing.is_set():
                raise BlockingIOError(11, "no process can be had")
            return start(*arguments)

        monkeypatch.setattr(decoder_module.Decoder, "_start", fail_first)
        decoder.kill()
        with pytest.raises(Unavailable, match="idle"):
            _decode(decoders, OWL)
        with pytest.raises(Unavailable, match="no process can be had"):
            _decode(decoders, OWL)
        failing.clear()
        assert _decode(decoders, OWL)
        assert len(decoders.turns.processes()) == 1


def test_closing_is_nobodys_fault(eventually: Callable[..., Any]) -> None:
    """Whoever decodes or waits while the pool is closed gets Unavailable, no verdict."""
    errors: list[Exception | None] = []
    decoders = Decoders(1, patience_s=60, tell=lambda _, error: errors.append(error))
    decoder = _only(decoders)
    os.kill(decoder.process.pid, signal.SIGSTOP)  # it decodes as long as the test likes
    with ThreadPoolExecutor(5) as threads:
        decodings = [threads.submit(_decode, decoders, OWL) for _ in range(5)]
        eventually(lambda: decoders.turns.waiting() == 4)
        decoders.close()
        for decoding in decodings:
            assert isinstance(decoding.exception(), Unavailable)
    assert [type(error) for error in errors] == [type(None), *[Unavailable] * 5]
    with pytest.raises(Unavailable):
        _decode(decoders, OWL)
    assert decoder.process.returncode == -signal.SIGKILL


def test_closing_amid_replacements_ends_every_process() -> None:
    """However many processes are lost and started while it closes, none is left."""
    before = set(psutil.Process().children())
    decoders = Decoders(4, patience_s=60)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(40):
            threads.submit(_give_up, decoders)
        decoders.close()
    assert set(psutil.Process().children()) <= before


def _give_up(decoders: Decoders) -> None:
    for process in decoders.turns.processes():
        process.process.kill()
    _decode(decoders, OWL)


def test_a_short_sound_passes_long_ones_in_one_process(tmp_path: Path) -> None:
    """With one process that has two long sounds open a short live one is decoded at once."""
    long = _wav(tmp_path / "long.wav", 60)
    with closing(Decoders(1, patience_s=60)) as decoders, ExitStack() as opened:
        windows, begun = [], []
        for urgent in (False, True):
            recording = opened.enter_context(decoders.open(long, 60, urgent=urgent))
            windows.append(recording.windows())
            begun.append(next(windows[-1]))
        assert _decode(decoders, OWL)
        rest = [np.concatenate([head, *tail]) for head, tail in zip(begun, windows, strict=True)]
        with open_recording(long, 60) as recording:
            expected = np.concatenate(list(recording.windows()))
        assert all(np.array_equal(each, expected) for each in rest)


def test_a_sound_is_open_only_once_a_process_is_there(eventually: Callable[..., Any]) -> None:
    """Who waits for one has not begun: should this process be killed, its sound is no suspect."""
    with closing(Decoders(1, patience_s=60)) as decoders, ThreadPoolExecutor(1) as thread:
        begun = threading.Event()

        def decode() -> int:
            with decoders.open(OWL, 60) as recording:
                begun.set()
                return len(list(recording.windows()))

        with decoders.open(OWL, 60) as first:
            second = thread.submit(decode)
            eventually(lambda: decoders.turns.waiting() == 1)
            assert not begun.is_set()
            assert len(list(first.windows())) == 1
        assert second.result() == 1


def test_decoding_is_confined() -> None:
    """A process that has decoded has given up its rights, as far as this machine can do so."""
    with closing(Decoders(1, patience_s=60)) as decoders:
        assert _only(decoders).confined is how_far()


@pytest.mark.skipif(sys.platform != "linux", reason="limits of descriptors as on Linux")
def test_more_than_1024_descriptors_work() -> None:
    """A worker with so many objects and connections open decodes as ever."""
    script = (
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        "from audiofuse.workers.indexing.decoding.pool import Decoders\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard < 4096 else 4096, hard))\n"
        "taken = [os.dup(0) for _ in range(1100)]\n"
        "pool = Decoders(1, 60)\n"
        "with pool.open(Path(sys.argv[1]), 60) as sound:\n"
        "    print(len(list(sound.windows())))\n"
        "pool.close()\n"
    )
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 1200:
        pytest.skip("this user may not have so many descriptors")
    done = subprocess.run(
        [sys.executable, "-c", script, str(OWL)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n", done.stderr


def test_a_sound_that_nobody_wants_to_the_end_costs_nothing(
    decoders: Decoders, tmp_path: Path
) -> None:
    """A reader that gives up before the first window or in the middle leaves a pool that works."""
    long = _wav(tmp_path / "long.wav", 30)
    for windows in (0, 1, 2):
        with decoders.open(long, 60) as recording:
            assert len(list(itertools.islice(recording.windows(), windows))) == windows
    assert _decode(decoders, OWL)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_a_decoding_that_eats_memory_is_rejected() -> None:
    """A process may not take more than its memory; whatever it does then costs its sound only."""
    script = (
        "import sys, numpy as np\n"
        "from audiofuse.workers.indexing.decoding import child\n"
        "child.Child._next = lambda self, *_: np.ones(2**28)\n"
        "child.main(*map(int, sys.argv[1:]))\n"
    )
    run = subprocess.Popen

    def start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":
        return run([command[0], "-c", script, *command[3:]], **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder_module.subprocess, "Popen", start)
        with closing(Decoders(1, patience_s=60)) as pool, pytest.raises(Rejected) as caught:
            _decode(pool, OWL)
    assert caught.value.reason is Reason.CRASHED


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
        "import time\nfrom audiofuse.workers.indexing.decoding.pool import Decoders\n"
        "Decoders(2, 9)\ntime.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        children = eventually(lambda: psutil.Process(parent.pid).children()[1:] and
                              psutil.Process(parent.pid).children())  # fmt: skip
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
