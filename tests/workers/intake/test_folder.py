"""The folder as an event source: what is handed over, and what costs a look at the index."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from audiofuse.core.retrying import BackOff
from audiofuse.core.storage.store import FolderStore
from audiofuse.core.storage.temporary import is_temporary
from audiofuse.workers.intake import handover
from audiofuse.workers.intake.folder import FolderIntake, FolderIntakes
from audiofuse.workers.telemetry.names import Lane

Eventually = Callable[..., Any]


class Watched:
    """A folder that is watched, what was handed over of it, and what was compared."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sent: list[tuple[str, Lane]] = []
        self.compared: list[str] = []
        self._stop = threading.Event()
        intake = FolderIntake(FolderStore(root), self, self._compare)  # type: ignore[arg-type]
        self._thread = threading.Thread(target=intake.run, args=(self._stop,))
        self._thread.start()

    def sync(self, key: str, lane: Lane) -> None:
        """Stand in for the dispatcher."""
        self.sent.append((key, lane))

    def _compare(self, prefix: str) -> list[str]:
        self.compared.append(prefix)
        return [f"{prefix}found.wav"] if prefix else []

    def live(self) -> set[str]:
        """Return the keys that were handed over as they changed."""
        return {key for key, lane in self.sent if lane is Lane.LIVE}

    def end(self) -> None:
        """Watch no more."""
        self._stop.set()
        self._thread.join()


@pytest.fixture
def watched(
    tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Watched]:
    """Return a folder with one sound in a folder, watched and compared once; tried anew at once."""
    monkeypatch.setattr(handover, "AGAIN", BackOff(first_s=0.05, most_s=0.05))
    (tmp_path / "bucket" / "old" / "deep").mkdir(parents=True)
    (tmp_path / "bucket" / "old" / "deep" / "a.wav").write_bytes(b"a")
    watched = Watched(tmp_path / "bucket")
    eventually(lambda: watched.compared == [""])
    yield watched
    watched.end()


TEMPORARY = [
    ".owl.wav.x1Y2z3", "owl.wav.part", "owl.wav.crdownload", ".owl.json.swp", "owl.json~",
    "#owl.json#", ".#owl.json", "4913", ".goutputstream-AB12CD", ".~lock.owl.json#",
    "old/.~tmp~/owl.wav", "old/.rsync-partial/owl.wav", "._owl.wav", "owl.wav.filepart",
]  # fmt: skip


@pytest.mark.parametrize("key", TEMPORARY)
def test_a_temporary_name_is_known(key: str) -> None:
    """So is that of a file in a folder of temporary files."""
    assert is_temporary(key)
    assert is_temporary(f"folder/{key}")


@pytest.mark.parametrize(
    "key", ["owl.wav", "mix.part.wav", ".hidden.wav", "a.part/owl.wav", "owl.wav.json", "4913.wav"]
)
def test_a_sounds_name_is_not_temporary(key: str) -> None:
    """However it is spelled, what ends like a sound is handed over."""
    assert not is_temporary(key)


def test_temporary_files_cost_no_look_at_the_index(
    watched: Watched, eventually: Eventually
) -> None:
    """A copy by rsync, a download and an edit hand over the sounds alone, and compare nothing."""
    for number in range(50):
        hidden = watched.root / "old" / f".{number}.wav.x1Y2z3"
        hidden.write_bytes(b"sound")
        hidden.rename(watched.root / "old" / f"{number}.wav")
        (watched.root / "notes.txt").write_text("x")
        (watched.root / "notes.txt").unlink()
    part = watched.root / "owl.wav.part"
    part.write_bytes(b"sound")
    part.rename(watched.root / "owl.wav")
    wanted = {f"old/{number}.wav" for number in range(50)} | {"owl.wav"}
    eventually(lambda: watched.live() >= wanted)
    assert watched.live() == wanted
    assert watched.compared == [""]


def test_a_folder_that_came_or_went_is_compared_alone(
    watched: Watched, eventually: Eventually
) -> None:
    """Its prefix is asked for, and what differs there goes to the backfill lane."""
    (watched.root / "old").rename(watched.root / "new")
    eventually(lambda: {"old/", "new/"} <= set(watched.compared))
    assert set(watched.compared[1:]) <= {"old/", "new/", "old/deep/", "new/deep/"}
    assert ("old/found.wav", Lane.BACKFILL) in watched.sent
    shutil.move(watched.root / "new" / "deep", watched.root.with_name("away"))
    eventually(lambda: "new/deep/" in watched.compared)


def test_another_folder_in_its_place_is_watched_instead(
    watched: Watched, eventually: Eventually
) -> None:
    """As a mount that came back: all is compared anew, and what changes there is told."""
    watched.root.rename(watched.root.with_name("away"))
    watched.root.mkdir()
    eventually(lambda: watched.compared == ["", ""])
    (watched.root / "owl.wav").write_bytes(b"sound")
    eventually(lambda: "owl.wav" in watched.live())


def test_several_folders_are_watched_under_their_names(
    tmp_path: Path, eventually: Eventually
) -> None:
    """What changes in each, and what nobody told of it before, has its bucket's name in front."""
    sent: list[str] = []
    compared: list[str] = []
    dispatcher: Any = SimpleNamespace(sync=lambda key, _: sent.append(key))

    def reconcile(prefix: str) -> list[str]:
        compared.append(prefix)
        return []

    intakes = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        store = FolderStore(tmp_path / name)
        intakes.append(FolderIntake(store, dispatcher, reconcile, f"{name}/"))
    stop = threading.Event()
    thread = threading.Thread(target=FolderIntakes(intakes).run, args=(stop,))
    thread.start()
    eventually(lambda: sorted(compared) == ["a/", "b/"])
    for name in ("a", "b"):
        (tmp_path / name / "owl.json").write_text("{}")
    eventually(lambda: set(sent) == {"a/owl.json", "b/owl.json"})
    stop.set()
    thread.join()
