"""Where uploads go: whole or not at all, over nothing that was not seen, in a folder and in S3."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from audiofuse.core.errors import ObjectChanged, Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import Store, open_store
from audiofuse.workers.service.uploads import places
from audiofuse.workers.service.uploads.places import Place, open_place

Opened = tuple[Store, Place]


@pytest.fixture
def content(tmp_path: Path) -> Callable[[bytes], Path]:
    """Return what writes something to be put."""

    def write(content: bytes) -> Path:
        (tmp_path / "content").write_bytes(content)
        return tmp_path / "content"

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Opened:
    """Return an empty folder and what writes to it."""
    (tmp_path / "sounds").mkdir()
    settings = Settings(bucket=str(tmp_path / "sounds"))
    store = open_store(settings)
    return store, open_place(settings, store)


@pytest.fixture(params=["folder", "s3"])
def opened(request: pytest.FixtureRequest) -> Opened:
    """Return an empty bucket of either kind and what writes to it."""
    if request.param == "folder":
        return request.getfixturevalue("folder")
    settings: Settings = request.getfixturevalue("aws_settings")
    store = open_store(settings)
    return store, open_place(settings, store)


def test_an_object_is_written_if_it_is_what_was_seen(
    opened: Opened, content: Callable[[bytes], Path]
) -> None:
    """New only where there is none, over another only with its etag; else nothing is changed."""
    store, place = opened
    place.put(content(b"one"), "a/b.wav", None)
    seen = store.head("a/b.wav")
    assert seen
    with pytest.raises(ObjectChanged):
        place.put(content(b"two"), "a/b.wav", None)
    place.put(content(b"three"), "a/b.wav", seen.etag)
    with pytest.raises(ObjectChanged):
        place.put(content(b"four"), "a/b.wav", seen.etag)
    (info,) = store.list()
    assert (info.key, store.read(info)) == ("a/b.wav", b"three")


def test_a_file_that_comes_in_between_stays(
    folder: Opened, content: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What somebody else writes under the name while ours is copied is not overwritten."""
    store, place = folder

    def copy(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())
        (target.parent / "a.wav").write_bytes(b"theirs")

    monkeypatch.setattr(places, "_copy", copy)
    with pytest.raises(ObjectChanged):
        place.put(content(b"ours"), "a.wav", None)
    (info,) = store.list()
    assert store.read(info) == b"theirs"


def test_file_systems_without_second_names_are_written_to(
    folder: Opened, content: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of memory cards: there the name is looked at before it is given."""
    store, place = folder

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(os, "link", refuse)
    place.put(content(b"x"), "a.wav", None)
    assert [info.key for info in store.list()] == ["a.wav"]


def test_a_full_disk_leaves_nothing(
    folder: Opened, content: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half of a sound, and no other file either."""
    store, place = folder

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Unavailable, match="full"):
        place.put(content(b"x"), "a.wav", None)
    assert not list(store.list())
