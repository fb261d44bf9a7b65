"""A folder as a bucket: what in it is an object, and by which key."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from audiofuse.core.errors import ObjectChanged, Rejected, Unavailable

FolderBucket = Any  # what ``conftest`` makes


@pytest.mark.parametrize("key", ["../secret.wav", "a/../../secret.wav", "link.wav", "links/a.wav"])
def test_nothing_outside_the_folder_is_an_object(folder: FolderBucket, key: str) -> None:
    """Neither dots nor links lead out of the bucket's folder."""
    outside = folder.root.parent
    (outside / "secret.wav").write_bytes(b"x")
    (outside / "elsewhere").mkdir()
    (outside / "elsewhere" / "a.wav").write_bytes(b"x")
    (folder.root / "a").mkdir()
    (folder.root / "link.wav").symlink_to(outside / "secret.wav")
    (folder.root / "links").symlink_to(outside / "elsewhere")
    assert (folder.root / key).exists()
    assert folder.store.head(key) is None
    assert folder.keys() == []


def test_an_absolute_path_outside_the_folder_is_no_object(folder: FolderBucket) -> None:
    """A key that is a path from the root names nothing in the bucket."""
    secret = folder.root.parent / "secret.wav"
    secret.write_bytes(b"x")
    assert folder.store.head(str(secret)) is None


@pytest.mark.parametrize(
    "key",
    [
        "./a.wav",
        "a.wav/",
        "sub/../a.wav",
        "sub//b.wav",
        "sub/./b.wav",
        "link/b.wav",
        "../sounds/a.wav",
        "{root}/a.wav",
    ],
)
def test_a_file_has_one_key(folder: FolderBucket, key: str) -> None:
    """Another way to spell the path of a file is not another object."""
    folder.put("a.wav", b"x")
    folder.put("sub/b.wav", b"x")
    (folder.root / "link").symlink_to("sub")
    key = key.format(root=folder.root)
    assert (folder.root / key.rstrip("/")).is_file()
    assert folder.store.head(key) is None
    assert folder.keys() == ["a.wav", "sub/b.wav"]


@pytest.mark.parametrize("prefix", ["../", "../sounds/", "link/", "./", "/etc/", "{root}/"])
def test_a_prefix_does_not_lead_out_of_the_folder(folder: FolderBucket, prefix: str) -> None:
    """Only what a key can begin with is listed: no dots, no links, no path from the root."""
    folder.put("a.wav", b"x")
    folder.put("sub/b.wav", b"x")
    (folder.root / "link").symlink_to("sub")
    assert folder.keys(prefix.format(root=folder.root)) == []


@pytest.mark.parametrize(
    "key", ["sub", "sub/", "pipe.wav", "dangling.wav", "loop.wav", "a\0b.wav", ""]
)
def test_only_plain_files_are_objects(folder: FolderBucket, key: str) -> None:
    """Folders, pipes, links to nothing or in a circle, impossible names: not seen, not listed."""
    (folder.root / "sub").mkdir()
    os.mkfifo(folder.root / "pipe.wav")
    (folder.root / "dangling.wav").symlink_to(folder.root / "nothing.wav")
    (folder.root / "loop.wav").symlink_to("loop.wav")
    assert folder.store.head(key) is None
    assert folder.keys() == []


@pytest.mark.parametrize("name", [b"line\nbreak.wav", b"bell\x07.wav", b"latin-1-\xfc.wav"])
def test_a_name_that_cannot_be_shown_is_skipped_with_a_warning(
    folder: FolderBucket, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Control characters and names that are no UTF-8 are told in the log, once per listing."""
    folder.put("fine.wav", b"x")
    (folder.root / os.fsdecode(name)).write_bytes(b"x")
    assert folder.keys() == ["fine.wav"]
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert warning.getMessage().isascii()


def test_a_file_rewritten_with_as_many_bytes_has_another_etag(folder: FolderBucket) -> None:
    """The modification time alone tells two files of equal size apart."""
    folder.put("rain.wav", b"one")
    before = folder.info("rain.wav")
    folder.put("rain.wav", b"two")
    later = (before.modified_ms + 1) * 1_000_000
    os.utime(folder.root / "rain.wav", ns=(later, later))
    assert folder.info("rain.wav").etag != before.etag


def test_a_verdict_on_a_file_that_changed_meanwhile_is_none(folder: FolderBucket) -> None:
    """If reading fails because the file is being written, it is changed, not broken."""
    folder.put("rain.wav", b"half")

    def fail_to_read() -> None:
        folder.put("rain.wav", b"all of it")
        raise ZeroDivisionError

    with pytest.raises(ObjectChanged), folder.store.open(folder.info("rain.wav")):
        fail_to_read()


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.EACCES, Rejected), (errno.EPERM, Rejected), (errno.EIO, Unavailable)],
)
def test_a_file_that_may_not_be_read_is_unreadable(
    folder: FolderBucket,
    number: int,
    expected: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Missing permission is a verdict on this file; a disk that fails is none."""
    folder.put("rain.wav", b"x")
    info = folder.info("rain.wav")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)  # root, who may run this test, reads everything
    with pytest.raises(expected, match=r"rain\.wav|unreadable"):
        folder.store.read(info)


def test_every_object_has_its_key_as_the_folder_tells_it(folder: FolderBucket) -> None:
    """A path that a watcher reports is the key under which the file is listed."""
    folder.put("a b/ü.wav", b"x")
    assert [folder.store.key_of(folder.root / "a b" / "ü.wav")] == folder.keys()
