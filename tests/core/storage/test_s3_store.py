"""A bucket behind the S3 protocol: keys, pages, headers."""

import errno
import io
import os
import tempfile
from email.header import Header
from typing import Any

import pytest

from audiofuse.core.errors import Unavailable
from audiofuse.core.items import sidecar_keys
from audiofuse.core.storage.s3 import MAX_KEY_BYTES

S3Bucket = Any  # what ``conftest`` makes


@pytest.mark.parametrize("key", ["a//b.wav", "./b.wav", "a/../b.wav", "b.wav/", " b.wav "])
def test_a_key_is_no_path(s3: S3Bucket, key: str) -> None:
    """S3 knows no folders: slashes and dots are characters like any other."""
    s3.put(key, b"content")
    info = s3.info(key)
    assert list(s3.store.list()) == [info]
    assert s3.store.read(info) == b"content"
    assert s3.store.head("b.wav") is None


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("Rain", "Rain"),
        ("100% =?sure?", "100% =?sure?"),
        (Header("Türe, 雨", "utf-8").encode(), "Türe, 雨"),
        (Header("Türe", "iso-8859-1").encode(), "Türe"),
        ("=?UTF-8?B?VMO8cmU=?= slams", "Türe slams"),
        ("=?utf-8?b?a?=", "=?utf-8?b?a?="),
        ("=?klingon?q?x?=", "=?klingon?q?x?="),
        ("=?undefined?q?a?=", "=?undefined?q?a?="),
        ("=?utf-8?q?=ff?=", "=?utf-8?q?=ff?="),
    ],
)
def test_user_metadata_is_read_as_it_was_meant(s3: S3Bucket, sent: str, read: str) -> None:
    """Values that are not ASCII travel as RFC 2047; what only looks like it is left alone."""
    s3.put("rain.wav", b"x", Metadata={"Title": sent})
    assert s3.info("rain.wav").user_metadata == {"title": read}


def test_a_listing_of_several_pages_is_whole(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets hold more than one answer's worth: every page is asked for, each key comes once."""
    monkeypatch.setattr("audiofuse.core.storage.s3.PAGE", 2)
    keys = [f"{number:02}+ü.wav" for number in range(7)]
    for key in keys:
        s3.put(key, b"x")
    assert s3.keys() == keys


def test_listing_in_the_order_of_keys(s3: S3Bucket) -> None:
    """S3 sorts whole keys, folders among files."""
    for key in ("b.wav", "a/1.wav", "a.wav", "A.wav"):
        s3.put(key, b"x")
    assert s3.keys() == ["A.wav", "a.wav", "a/1.wav", "b.wav"]


def test_a_download_is_gone_afterwards(s3: S3Bucket) -> None:
    """The temporary file lives as long as it is lent, also when its reader fails."""
    s3.put("rain.wav", b"x")
    with s3.store.open(s3.info("rain.wav")) as path:
        assert path.exists()
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), s3.store.open(s3.info("rain.wav")) as path:
        raise ZeroDivisionError
    assert not path.exists()


def test_a_name_longer_than_any_key_is_no_object(s3: S3Bucket) -> None:
    """The longest key has no sidecar, and S3, which would refuse the question, is not asked."""
    key = "x" * (MAX_KEY_BYTES - 4) + ".wav"
    s3.put(key, b"x")
    assert s3.info(key).size == 1
    assert [s3.store.head(sidecar) for sidecar in sidecar_keys("ü" + key)] == [None, None]


def test_a_disk_that_is_full_means_later(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a download cannot be written is no verdict on it, and tells where to make room."""
    s3.put("rain.wav", b"sound")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Full(io.BytesIO):
        write = refuse

        def fileno(self) -> int:
            return 0

    for file in (lambda **_: Full(), refuse):
        with monkeypatch.context() as patch:
            patch.setattr("tempfile.TemporaryFile", file)
            with pytest.raises(Unavailable, match="No space left") as raised:
                s3.store.read(s3.info("rain.wav"))
        assert tempfile.gettempdir() in str(raised.value)


def test_a_reader_that_fails_is_not_the_bucket(s3: S3Bucket) -> None:
    """What goes wrong with a download that is there is told as it is."""
    s3.put("rain.wav", b"sound")
    with pytest.raises(FileExistsError), s3.store.open(s3.info("rain.wav")):
        raise FileExistsError
