"""Stores: a folder and a bucket behave alike, and never hand out another object than was asked."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiofuse.core.errors import ConfigurationError, ObjectChanged
from audiofuse.core.items import sidecar_keys
from audiofuse.core.settings import Settings
from audiofuse.core.storage.s3 import S3Store
from audiofuse.core.storage.store import FolderStore, content_hash, open_store

Bucket = FolderBucket = S3Bucket = Any  # what ``conftest`` makes
ODD_KEYS = [
    "rain heavy.wav",
    "rain+heavy.wav",
    "rain%20heavy.wav",
    "100%.wav",
    "räin.wav",
    "ra\u0308in.wav",  # the same letters, decomposed
    "\N{FILE FOLDER}/雨.wav",
    "a&b=c?d#e.wav",
    'it\'s "quoted" <here>.wav',
    "a\\b:c*d|e.wav",
    "-rf ~.wav",
    "macOS at 3.00\N{NARROW NO-BREAK SPACE}PM.wav",
    "no-break\N{NO-BREAK SPACE}.wav",
    "雨\N{IDEOGRAPHIC SPACE}.wav",
    "نمی\N{ZERO WIDTH NON-JOINER}د.wav",
    "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}.wav",
    "soft\N{SOFT HYPHEN}hyphen.wav",
    "deep/er/and/deeper.wav",
]


@pytest.mark.parametrize("key", ["rain.wav", "no/such/folder/rain.wav", "there.wav/rain.wav"])
def test_nothing_is_none(bucket: Bucket, key: str) -> None:
    """Looking at an object that does not exist is no error."""
    bucket.put("there.wav", b"x")
    assert bucket.store.head(key) is None


def test_the_longest_names_have_no_sidecar(bucket: Bucket) -> None:
    """Where a sidecar's name would be too long for a file, there is no sidecar."""
    key = "x" * 251 + ".wav"
    bucket.put(key, b"x")
    assert bucket.info(key).size == 1
    assert [bucket.store.head(sidecar) for sidecar in sidecar_keys(key)] == [None, None]


def test_an_empty_bucket_lists_nothing(bucket: Bucket) -> None:
    """A bucket without objects has an empty listing."""
    assert bucket.keys() == []


@pytest.mark.parametrize("key", ODD_KEYS)
def test_head_list_read_and_open_agree(bucket: Bucket, key: str) -> None:
    """However odd its name, an object is one and the same to every method."""
    before = time.time() * 1000
    bucket.put(key, b"content")
    info = bucket.info(key)
    assert list(bucket.store.list()) == [info]
    assert (info.key, info.size) == (key, 7)
    assert info.etag
    assert before - 1500 < info.modified_ms < time.time() * 1000 + 1500  # S3 knows whole seconds
    assert bucket.store.read(info) == b"content"
    with bucket.store.open(info) as path:
        assert path.read_bytes() == b"content"


def test_odd_names_do_not_collide(bucket: Bucket) -> None:
    """Each of many similar names has its own content."""
    for key in ODD_KEYS:
        bucket.put(key, key.encode())
    read = {info.key: bucket.store.read(info).decode() for info in bucket.store.list()}
    assert read == {key: key for key in ODD_KEYS}


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["a.wav", "a/1.wav", "a/b/2.wav", "ab/3.wav", "b.wav"]),
        ("a", ["a.wav", "a/1.wav", "a/b/2.wav", "ab/3.wav"]),
        ("a/", ["a/1.wav", "a/b/2.wav"]),
        ("a/b", ["a/b/2.wav"]),
        ("a/1.wav", ["a/1.wav"]),
        ("A", []),
        ("zebra", []),
        ("zebra/crossing/", []),
        ("b.wav/", []),
    ],
)
def test_a_prefix_is_how_the_key_begins(bucket: Bucket, prefix: str, expected: list[str]) -> None:
    """A listing holds every key that begins with the prefix, a whole folder name or not."""
    for key in ("b.wav", "ab/3.wav", "a/b/2.wav", "a/1.wav", "a.wav"):
        bucket.put(key, b"x")
    assert sorted(bucket.keys(prefix)) == expected


def test_listing_in_order(bucket: Bucket) -> None:
    """The objects of a folder come sorted, in whichever order they were made."""
    for key in ("c.wav", "a.wav", "b.wav", "B.wav", "a b.wav"):
        bucket.put(key, b"x")
    assert bucket.keys() == ["B.wav", "a b.wav", "a.wav", "b.wav", "c.wav"]


def _replace(bucket: Bucket) -> None:
    bucket.put("rain.wav", b"another sound")


def _delete(bucket: Bucket) -> None:
    bucket.delete("rain.wav")


@pytest.mark.parametrize("change", [_replace, _delete])
def test_another_object_is_never_read_instead(
    bucket: Bucket, change: Callable[[Bucket], None]
) -> None:
    """An object that was replaced or deleted since it was looked at is reported as changed."""
    bucket.put("rain.wav", b"sound")
    seen = bucket.info("rain.wav")
    change(bucket)
    with pytest.raises(ObjectChanged):
        bucket.store.read(seen)
    with pytest.raises(ObjectChanged), bucket.store.open(seen):
        pass
    with pytest.raises(ObjectChanged):
        bucket.store.part(seen, 0, 2)


@pytest.mark.parametrize(("first", "count"), [(0, 1), (3, 4), (9, 1), (0, 10)])
def test_a_part_is_those_bytes(bucket: Bucket, first: int, count: int) -> None:
    """Some bytes of an object are got without the rest, at its beginning, its end, or all."""
    bucket.put("rain.wav", b"0123456789")
    part = bucket.store.part(bucket.info("rain.wav"), first, count)
    assert part == b"0123456789"[first : first + count]


def test_other_content_has_another_etag(bucket: Bucket) -> None:
    """A replaced object is told apart from the one before, and reads as the new one."""
    bucket.put("rain.wav", b"sound")
    before = bucket.info("rain.wav")
    bucket.put("rain.wav", b"another sound")
    after = bucket.info("rain.wav")
    assert before.etag != after.etag
    assert bucket.store.read(after) == b"another sound"


def test_an_object_left_alone_keeps_its_state(bucket: Bucket) -> None:
    """Looking and reading change nothing that the next look would show."""
    bucket.put("rain.wav", b"sound")
    before = bucket.info("rain.wav")
    bucket.store.read(before)
    assert bucket.info("rain.wav") == before


def test_an_empty_object_is_an_object(bucket: Bucket) -> None:
    """No bytes are still something that exists."""
    bucket.put("empty.wav", b"")
    info = bucket.info("empty.wav")
    assert info.size == 0
    assert bucket.store.read(info) == b""


def test_an_error_while_an_object_is_open_passes_through(bucket: Bucket) -> None:
    """What its reader raises about an unchanged object is not disguised."""
    bucket.put("rain.wav", b"sound")
    with pytest.raises(ZeroDivisionError), bucket.store.open(bucket.info("rain.wav")):
        raise ZeroDivisionError


def test_the_store_is_named_after_its_bucket(folder: FolderBucket, s3: S3Bucket) -> None:
    """Point ids are made from this name, so it is the bucket's own."""
    assert folder.store.bucket == "sounds"
    assert s3.store.bucket == s3.name


def test_a_content_hash_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    """The hash is what sha256sum prints."""
    (tmp_path / "f").write_bytes(b"abc")
    assert content_hash(tmp_path / "f").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


@pytest.mark.parametrize("name", ["", "s3://", "s3:///", "s3://a/b", "s3://a/b/"])
def test_a_bucket_that_is_none_is_refused(name: str) -> None:
    """A bucket setting that can name no bucket is told at once, with the setting's name."""
    with pytest.raises(ConfigurationError, match="AUDIOFUSE_BUCKET"):
        open_store(Settings(bucket=name))


@pytest.mark.parametrize(
    "wrong",
    [
        {"s3_endpoint_url": "127.0.0.1:9000"},
        {"s3_endpoint_url": "localhost"},
        {"s3_region": "bad region"},
    ],
)
def test_an_endpoint_or_region_that_is_none_is_refused(wrong: dict[str, str]) -> None:
    """A value that boto3 cannot make sense of is told at once, with the settings' names."""
    with pytest.raises(
        ConfigurationError, match="AUDIOFUSE_S3_ENDPOINT_URL or AUDIOFUSE_S3_REGION"
    ):
        open_store(Settings(bucket="s3://sounds").model_copy(update=wrong))


def test_the_setting_tells_which_store_it_is(tmp_path: Path) -> None:
    """A URL opens a bucket, with or without a slash at its end; a path opens a folder."""
    assert isinstance(open_store(Settings(bucket="s3://sounds/")), S3Store)
    assert open_store(Settings(bucket="s3://sounds/")).bucket == "sounds"
    assert isinstance(open_store(Settings(bucket=str(tmp_path))), FolderStore)


def test_a_folder_in_the_home_folder_may_be_written_with_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a .env file no shell expands the tilde, so the store does."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sounds").mkdir()
    assert open_store(Settings(bucket="~/sounds")).bucket == "sounds"


def test_a_missing_folder_is_a_configuration_error(tmp_path: Path) -> None:
    """A folder that does not exist, or is a file, is named in the error."""
    (tmp_path / "file").touch()
    for name in ("missing", "file"):
        with pytest.raises(ConfigurationError, match=str(tmp_path / name)):
            FolderStore(tmp_path / name)
