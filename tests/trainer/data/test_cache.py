"""The cache of decoded audio: each clip once, whole or not at all, and read as it was decoded."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.errors import ConfigurationError, Reason
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.items import Metadata
from audiofuse.trainer.data import cache
from audiofuse.trainer.data.cache import AudioCache, Prepared, read

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
ROOT = SOUNDS.parent.parent
OWL, CROW = SOUNDS / "animals/owl.wav", SOUNDS / "animals/crow.flac"
LIMIT_S = 30.0


def _clip(path: Path) -> Clip:
    return Clip(path, path.name, "train", Metadata())


def _prepare(folder: Path, *paths: Path, limit_s: float = LIMIT_S, workers: int = 1) -> Prepared:
    return AudioCache(folder, limit_s, workers).prepare(map(_clip, paths))


def _decoded(path: Path) -> np.ndarray:
    with open_recording(path, LIMIT_S) as recording:
        return np.concatenate(list(recording.windows()))


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes every further decoding an error."""
    return lambda: monkeypatch.setattr(cache, "_start_pool", None)


@pytest.mark.parametrize("path", [OWL, CROW, SOUNDS / "home/typing.mp3"], ids=lambda p: p.name)
def test_reading_gives_what_was_decoded(tmp_path: Path, path: Path) -> None:
    """Any stretch of a clip is that of its decoding, to half a step of int16."""
    entry = _prepare(tmp_path / "cache", path).entries[path]
    whole = _decoded(path)
    assert entry.samples == whole.size
    samples = read(entry, 100, 1000)
    assert samples.dtype == np.float32
    np.testing.assert_allclose(samples, whole[100:1100].clip(-1, 1), atol=0.51 / 32768)
    assert read(entry, entry.samples - 10, 1000).size == 10


def test_what_is_louder_than_full_scale_is_clipped(tmp_path: Path) -> None:
    """Overshoot stays at full scale instead of turning into its opposite."""
    with (tmp_path / "loud.npy").open("w+b") as file:
        cache._write([np.array([1.5, -1.5, 1.0, -1.0, 0.5], np.float32)], file)
    assert np.load(tmp_path / "loud.npy").tolist() == [32767, -32768, 32767, -32768, 16384]


def test_a_long_clip_is_one_array(tmp_path: Path) -> None:
    """A length that is known only in the end does not move the samples."""
    windows = [np.full(320_000, level, np.float32) for level in (0.25, 0.5)]
    with (tmp_path / "long.npy").open("w+b") as file:
        assert cache._write(windows, file)[0] == 640_000
    stored = np.load(tmp_path / "long.npy", mmap_mode="r")
    assert (stored.dtype, stored.shape) == (np.dtype("<i2"), (640_000,))
    assert (stored[0], stored[-1]) == (8192, 16384)


def test_a_second_run_decodes_nothing(tmp_path: Path, no_decoding: Callable[[], None]) -> None:
    """What is in the folder is found again by another cache object, without a decoder."""
    first = _prepare(tmp_path / "cache", OWL, CROW)
    no_decoding()
    assert _prepare(tmp_path / "cache", CROW, OWL).entries == first.entries


def test_clips_of_one_file_share_an_entry(tmp_path: Path) -> None:
    """A file that several clips name is decoded once, also under another spelling of its path."""
    folder = tmp_path / "cache"
    spelled = OWL.parent / ".." / OWL.parent.name / OWL.name
    prepared = _prepare(folder, OWL, OWL, spelled)
    assert list(prepared.entries) == [OWL, spelled]
    _prepare(folder, OWL)
    assert len({entry.file for entry in _prepare(folder, OWL, spelled).entries.values()}) == 1


def test_a_changed_file_is_decoded_anew(tmp_path: Path) -> None:
    """Another sound under the same name, even as long and as large, is another entry."""
    path = tmp_path / "sound.wav"
    shutil.copy(OWL, path)
    before = _prepare(tmp_path / "cache", path).entries[path]
    content = bytearray(path.read_bytes())
    content[-2000:] = content[-4000:-2000]
    path.write_bytes(content)
    after = _prepare(tmp_path / "cache", path).entries[path]
    assert after.samples == before.samples
    assert after.content != before.content
    assert after.file != before.file


def test_content_tells_copies(tmp_path: Path) -> None:
    """A copy under another name has the same content, another sound has not."""
    copy = tmp_path / "copy.wav"
    shutil.copy(OWL, copy)
    contents = _prepare(tmp_path / "cache", OWL, copy, CROW).contents
    assert contents[OWL] == contents[copy] != contents[CROW]


def test_broken_files_are_listed(tmp_path: Path) -> None:
    """What cannot be decoded is told with its reason for each clip, and leaves no file behind."""
    empty, cut, gone = tmp_path / "empty.wav", tmp_path / "cut.flac", tmp_path / "gone.wav"
    empty.touch()
    cut.write_bytes(CROW.read_bytes()[:9000])
    prepared = _prepare(
        tmp_path / "cache", empty, OWL, cut, gone, gone, SOUNDS / "ATTRIBUTION.md", workers=2
    )
    assert list(prepared.entries) == [OWL]
    assert [(clip.path.name, error.reason) for clip, error in prepared.rejected] == [
        ("empty.wav", Reason.EMPTY),
        ("cut.flac", Reason.DAMAGED),
        ("gone.wav", Reason.NOT_AUDIO),
        ("gone.wav", Reason.NOT_AUDIO),
        ("ATTRIBUTION.md", Reason.NOT_AUDIO),
    ]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


def test_too_long_is_too_long_whenever_it_was_decoded(tmp_path: Path) -> None:
    """A lower limit holds for what an earlier run kept under a higher one."""
    folder = tmp_path / "cache"
    duration_s = _prepare(folder, OWL).entries[OWL].samples / SAMPLE_RATE
    for each in (folder, tmp_path / "other"):
        prepared = _prepare(each, OWL, limit_s=duration_s / 2)
        assert not prepared.entries
        assert [error.reason for _, error in prepared.rejected] == [Reason.TOO_LONG]


def test_an_entry_cut_short_is_decoded_anew(tmp_path: Path) -> None:
    """A file that a crash of the machine left incomplete is not read, but replaced."""
    entry = _prepare(tmp_path / "cache", OWL).entries[OWL]
    whole = entry.file.read_bytes()
    entry.file.write_bytes(whole[: len(whole) // 2])
    assert _prepare(tmp_path / "cache", OWL).entries[OWL] == entry
    assert entry.file.read_bytes() == whole


def test_foreign_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    """What is no entry by its name is no entry, and stays."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in ("notes.txt", "other.npy", "abc.part"):
        (folder / name).touch()
    _prepare(folder, OWL)
    assert len(list(folder.iterdir())) == 4


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    """A cache that cannot be written is an error of configuration that names it."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="file"):
        _prepare(tmp_path / "file", OWL)


def test_a_file_that_kills_its_decoder_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that crash the decoding process are listed; all others, before and after, are kept."""
    (tmp_path / "crashing.py").write_text(
        "import os\n"
        "from audiofuse.trainer.data.cache import _decode\n"
        "def decode(source, folder, max_duration_s):\n"
        "    if source.path.name.startswith('deadly'):\n"
        "        os._exit(9)\n"
        "    return _decode(source, folder, max_duration_s)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)  # spawned processes get the same path
    import crashing  # type: ignore[import-not-found]

    monkeypatch.setattr(cache, "_decode", crashing.decode)
    deadly = [tmp_path / "deadly-1.wav", tmp_path / "deadly-2.wav"]
    for path in deadly:
        shutil.copy(OWL, path)
    prepared = _prepare(tmp_path / "cache", OWL, deadly[0], CROW, deadly[1], workers=2)
    assert set(prepared.entries) == {OWL, CROW}
    assert [(clip.path, error.reason) for clip, error in prepared.rejected] == [
        (path, Reason.DAMAGED) for path in deadly
    ]


def test_a_decoder_that_hangs_is_ended(tmp_path: Path) -> None:
    """A process whose decoder never returns is ended by the kernel, as one that crashes."""
    script = (
        "import signal, sys, pathlib\n"
        "from audiofuse.trainer.data import cache\n"
        "cache.MOST_DECODE_S = 1\n"
        "cache.open_recording = lambda *_: signal.pause()\n"
        "cache._decode(cache._Source(pathlib.Path('x'), 'key'), pathlib.Path(sys.argv[1]), 1.0)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    assert subprocess.run(command, check=False, timeout=100).returncode == -signal.SIGALRM


def test_an_unforeseen_error_costs_only_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw is that file's verdict; a full disk is nobody's."""

    def fail(error: Exception) -> cache.Entry | tuple[Reason, str]:
        def raise_it(*_: object) -> Any:
            raise error

        monkeypatch.setattr(cache, "open_recording", raise_it)
        return cache._decode(cache._Source(OWL, "key"), tmp_path, LIMIT_S)

    assert fail(ZeroDivisionError("odd")) == (Reason.BUG, "ZeroDivisionError('odd')")
    with pytest.raises(OSError, match="full"):
        fail(OSError("full"))
    assert not list(tmp_path.iterdir())


def test_progress_sees_the_work(tmp_path: Path) -> None:
    """A progress display is given what is left to decode, with its length, as it gets done."""
    seen: list[int] = []

    def count(work: Any) -> Any:
        seen.append(len(work))
        return work

    preparing = AudioCache(tmp_path / "cache", LIMIT_S, workers=1)
    preparing.prepare([_clip(OWL)], count)
    preparing.prepare([_clip(OWL), _clip(CROW)], count)
    assert seen == [1, 1]


RUN = """
import sys
from pathlib import Path
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.items import Metadata
from audiofuse.trainer.data.cache import AudioCache
if __name__ == "__main__":
    paths = sorted(Path(sys.argv[2]).iterdir())
    clips = [Clip(path, path.name, "train", Metadata()) for path in paths]
    AudioCache(Path(sys.argv[1]), 30, workers=2).prepare(clips)
"""


def test_a_killed_run_leaves_a_usable_cache(
    tmp_path: Path, eventually: Callable[..., Any], no_decoding: Callable[[], None]
) -> None:
    """After SIGKILL the decoders end too, each entry is whole, and the next run does the rest."""
    folder, sounds, script = tmp_path / "cache", tmp_path / "sounds", tmp_path / "run.py"
    script.write_text(RUN)
    sounds.mkdir()
    paths = [sounds / f"{number}.flac" for number in range(400)]
    for path in paths:
        shutil.copy(CROW, path)
    command = [sys.executable, "-W", "error", str(script), str(folder), str(sounds)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment) as run:
        eventually(lambda: folder.is_dir() and any(folder.glob("*.npy")))
        decoders = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGKILL)
    assert decoders
    assert not psutil.wait_procs(decoders, timeout=10)[1]
    assert 0 < len(list(folder.glob("*.npy"))) < 400
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    no_decoding()
    entries = _prepare(folder, *paths).entries
    assert len(entries) == 400
    whole = read(entries[paths[0]], 0, SAMPLE_RATE)
    assert all(np.array_equal(read(entry, 0, SAMPLE_RATE), whole) for entry in entries.values())
