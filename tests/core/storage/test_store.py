"""Stores: a folder and a bucket behave alike, and never hand out another object than was asked."""

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.header import Header
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol

import pytest

from audiofuse.core.errors import ConfigurationError, ObjectChanged, Unavailable
from audiofuse.core.items import ObjectInfo, sidecar_keys
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import (
    FolderStore,
    S3Store,
    Store,
    content_hash,
    open_store,
    s3_client,
)

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


class Bucket(Protocol):
    """A store with the means to change what is in it."""

    store: Store

    def put(self, key: str, content: bytes) -> None:
        """Create or replace an object."""

    def delete(self, key: str) -> None:
        """Delete an object."""


class FolderBucket:
    """A folder, changed as users do."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.store = FolderStore(root)

    def put(self, key: str, content: bytes) -> None:
        """Write the file."""
        (self.root / key).parent.mkdir(parents=True, exist_ok=True)
        (self.root / key).write_bytes(content)

    def delete(self, key: str) -> None:
        """Delete the file."""
        (self.root / key).unlink()


class S3Bucket:
    """A bucket of moto's server, changed through boto3."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = s3_client(settings)
        self.name = settings.bucket.removeprefix("s3://")
        self.store = open_store(settings)

    def put(self, key: str, content: bytes, **options: Any) -> None:
        """Put the object, with more arguments of boto3's if need be."""
        self.client.put_object(Bucket=self.name, Key=key, Body=content, **options)

    def delete(self, key: str) -> None:
        """Delete the object."""
        self.client.delete_object(Bucket=self.name, Key=key)


@pytest.fixture
def folder(tmp_path: Path) -> FolderBucket:
    """Return an empty folder."""
    return FolderBucket(tmp_path / "sounds")


@pytest.fixture
def s3(aws_settings: Settings) -> S3Bucket:
    """Return an empty bucket behind the S3 protocol."""
    return S3Bucket(aws_settings)


@pytest.fixture(params=["folder", "s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """Return an empty bucket of either kind."""
    return request.getfixturevalue(request.param)


def _info(bucket: Bucket, key: str) -> ObjectInfo:
    info = bucket.store.head(key)
    assert info is not None
    return info


def _keys(store: Store, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


@pytest.mark.parametrize("key", ["rain.wav", "no/such/folder/rain.wav", "there.wav/rain.wav"])
def test_nothing_is_none(bucket: Bucket, key: str) -> None:
    """Looking at an object that does not exist is no error."""
    bucket.put("there.wav", b"x")
    assert bucket.store.head(key) is None


def test_the_longest_names_have_no_sidecar(bucket: Bucket) -> None:
    """Where a sidecar's name would be too long for a file, there is no sidecar."""
    key = "x" * 251 + ".wav"
    bucket.put(key, b"x")
    assert _info(bucket, key).size == 1
    assert [bucket.store.head(sidecar) for sidecar in sidecar_keys(key)] == [None, None]


def test_an_empty_bucket_lists_nothing(bucket: Bucket) -> None:
    """A bucket without objects has an empty listing."""
    assert _keys(bucket.store) == []


@pytest.mark.parametrize("key", ODD_KEYS)
def test_head_list_read_and_open_agree(bucket: Bucket, key: str) -> None:
    """However odd its name, an object is one and the same to every method."""
    before = time.time() * 1000
    bucket.put(key, b"content")
    info = _info(bucket, key)
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
    assert sorted(_keys(bucket.store, prefix)) == expected


def test_listing_in_order(bucket: Bucket) -> None:
    """The objects of a folder come sorted, in whichever order they were made."""
    for key in ("c.wav", "a.wav", "b.wav", "B.wav", "a b.wav"):
        bucket.put(key, b"x")
    assert _keys(bucket.store) == ["B.wav", "a b.wav", "a.wav", "b.wav", "c.wav"]


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
    seen = _info(bucket, "rain.wav")
    change(bucket)
    with pytest.raises(ObjectChanged):
        bucket.store.read(seen)
    with pytest.raises(ObjectChanged), bucket.store.open(seen):
        pass


def test_other_content_has_another_etag(bucket: Bucket) -> None:
    """A replaced object is told apart from the one before, and reads as the new one."""
    bucket.put("rain.wav", b"sound")
    before = _info(bucket, "rain.wav")
    bucket.put("rain.wav", b"another sound")
    after = _info(bucket, "rain.wav")
    assert before.etag != after.etag
    assert bucket.store.read(after) == b"another sound"


def test_an_object_left_alone_keeps_its_state(bucket: Bucket) -> None:
    """Looking and reading change nothing that the next look would show."""
    bucket.put("rain.wav", b"sound")
    before = _info(bucket, "rain.wav")
    bucket.store.read(before)
    assert _info(bucket, "rain.wav") == before


def test_an_empty_object_is_an_object(bucket: Bucket) -> None:
    """No bytes are still something that exists."""
    bucket.put("empty.wav", b"")
    info = _info(bucket, "empty.wav")
    assert info.size == 0
    assert bucket.store.read(info) == b""


def test_an_error_while_an_object_is_open_passes_through(bucket: Bucket) -> None:
    """What its reader raises about an unchanged object is not disguised."""
    bucket.put("rain.wav", b"sound")
    with pytest.raises(ZeroDivisionError), bucket.store.open(_info(bucket, "rain.wav")):
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
    assert _keys(folder.store) == []


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
    assert _keys(folder.store) == ["a.wav", "sub/b.wav"]


@pytest.mark.parametrize("prefix", ["../", "../sounds/", "link/", "./", "/etc/", "{root}/"])
def test_a_prefix_does_not_lead_out_of_the_folder(folder: FolderBucket, prefix: str) -> None:
    """Only what a key can begin with is listed: no dots, no links, no path from the root."""
    folder.put("a.wav", b"x")
    folder.put("sub/b.wav", b"x")
    (folder.root / "link").symlink_to("sub")
    assert _keys(folder.store, prefix.format(root=folder.root)) == []


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
    assert _keys(folder.store) == []


@pytest.mark.parametrize("name", [b"line\nbreak.wav", b"bell\x07.wav", b"latin-1-\xfc.wav"])
def test_a_name_that_cannot_be_shown_is_skipped_with_a_warning(
    folder: FolderBucket, name: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Control characters and names that are no UTF-8 are told in the log, once per listing."""
    folder.put("fine.wav", b"x")
    (folder.root / os.fsdecode(name)).write_bytes(b"x")
    assert _keys(folder.store) == ["fine.wav"]
    (warning,) = caplog.records
    assert warning.levelname == "WARNING"
    assert warning.getMessage().isascii()


def test_a_file_rewritten_with_as_many_bytes_has_another_etag(folder: FolderBucket) -> None:
    """The modification time alone tells two files of equal size apart."""
    folder.put("rain.wav", b"one")
    before = _info(folder, "rain.wav")
    folder.put("rain.wav", b"two")
    later = (before.modified_ms + 1) * 1_000_000
    os.utime(folder.root / "rain.wav", ns=(later, later))
    assert _info(folder, "rain.wav").etag != before.etag


def test_a_verdict_on_a_file_that_changed_meanwhile_is_none(folder: FolderBucket) -> None:
    """If reading fails because the file is being written, it is changed, not broken."""
    folder.put("rain.wav", b"half")

    def fail_to_read() -> None:
        folder.put("rain.wav", b"all of it")
        raise ZeroDivisionError

    with pytest.raises(ObjectChanged), folder.store.open(_info(folder, "rain.wav")):
        fail_to_read()


@pytest.mark.parametrize("how", ["read", "open"])
def test_a_file_that_may_not_be_read_is_unavailable(
    folder: FolderBucket, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing permission means later: it is no verdict on the sound."""
    folder.put("rain.wav", b"x")
    info = _info(folder, "rain.wav")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)  # root, who may run this test, reads everything
    with pytest.raises(Unavailable, match=r"rain\.wav"):
        METHODS[how](folder.store, info)


def test_every_object_has_its_key_as_the_folder_tells_it(folder: FolderBucket) -> None:
    """A path that a watcher reports is the key under which the file is listed."""
    folder.put("a b/ü.wav", b"x")
    assert [folder.store.key_of(folder.root / "a b" / "ü.wav")] == _keys(folder.store)


@pytest.mark.parametrize("key", ["a//b.wav", "./b.wav", "a/../b.wav", "b.wav/", " b.wav "])
def test_a_key_is_no_path(s3: S3Bucket, key: str) -> None:
    """S3 knows no folders: slashes and dots are characters like any other."""
    s3.put(key, b"content")
    info = _info(s3, key)
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
    assert _info(s3, "rain.wav").user_metadata == {"title": read}


def test_a_listing_of_several_pages_is_whole(s3: S3Bucket) -> None:
    """Buckets hold more than one answer's worth: every page is asked for, each key comes once."""
    keys = [f"{number:02}+ü.wav" for number in range(7)]
    for key in keys:
        s3.put(key, b"x")

    def small_pages(params: dict[str, Any], **_: object) -> dict[str, Any]:
        return params | {"MaxKeys": 2}  # a thousand, otherwise

    client = s3_client(s3.settings)
    client.meta.events.register("provide-client-params.s3.ListObjectsV2", small_pages)
    assert _keys(S3Store(s3.name, client)) == keys


def test_listing_and_looking_agree_on_the_time(s3: S3Bucket) -> None:
    """Some servers list fractions of a second, which the headers of an object cannot tell."""
    s3.put("rain.wav", b"x")

    def with_fractions(parsed: dict[str, Any], **_: object) -> None:
        for entry in parsed["Contents"]:
            entry["LastModified"] = entry["LastModified"].replace(microsecond=123_000)

    client = s3_client(s3.settings)
    client.meta.events.register("after-call.s3.ListObjectsV2", with_fractions)
    assert list(S3Store(s3.name, client).list()) == [_info(s3, "rain.wav")]


def test_listing_in_the_order_of_keys(s3: S3Bucket) -> None:
    """S3 sorts whole keys, folders among files."""
    for key in ("b.wav", "a/1.wav", "a.wav", "A.wav"):
        s3.put(key, b"x")
    assert _keys(s3.store) == ["A.wav", "a.wav", "a/1.wav", "b.wav"]


def test_a_download_is_gone_afterwards(s3: S3Bucket) -> None:
    """The temporary file lives as long as it is lent, also when its reader fails."""
    s3.put("rain.wav", b"x")
    with s3.store.open(_info(s3, "rain.wav")) as path:
        assert path.exists()
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), s3.store.open(_info(s3, "rain.wav")) as path:
        raise ZeroDivisionError
    assert not path.exists()


def _open(store: Store, info: ObjectInfo) -> None:
    with store.open(info):
        pass


METHODS: dict[str, Callable[[Store, ObjectInfo], object]] = {
    "head": lambda store, info: store.head(info.key),
    "read": lambda store, info: store.read(info),
    "open": _open,
    "list": lambda store, _: list(store.list()),
}
SOME = ObjectInfo("rain.wav", "0" * 32, 5, 0)


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let boto3 try again at once."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("method", METHODS)
def test_an_endpoint_that_is_down_is_unavailable(aws_settings: Settings, method: str) -> None:
    """Nobody at the address means later, whatever was asked."""
    away = aws_settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(Unavailable):
        METHODS[method](open_store(away), SOME)


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_bucket_is_unavailable(aws_settings: Settings, method: str) -> None:
    """A bucket that is not there is neither empty nor has its objects deleted or changed."""
    away = aws_settings.model_copy(update={"bucket": "s3://no-such-bucket"})
    with pytest.raises(Unavailable, match="no-such-bucket"):
        METHODS[method](open_store(away), SOME)


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_that_vanished_is_unavailable(folder: FolderBucket, method: str) -> None:
    """A disk that is not mounted has lost none of its sounds."""
    folder.put("rain.wav", b"x")
    info = _info(folder, "rain.wav")
    folder.root.rename(folder.root.parent / "elsewhere")
    with pytest.raises(Unavailable, match=str(folder.root)):
        METHODS[method](folder.store, info)


@contextmanager
def _server(status: int, length: int, content: bytes) -> Iterator[str]:
    """Answer every request alike: a fault that no real server shows on demand."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815 - the name is the base class's

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("status", [403, 500, 503])
def test_a_server_that_cannot_answer_is_unavailable(
    aws_settings: Settings, status: int, method: str
) -> None:
    """No access and no service mean later; no object is taken for deleted because of them."""
    with _server(status, 0, b"") as url:
        away = aws_settings.model_copy(update={"s3_endpoint_url": url})
        with pytest.raises(Unavailable, match=r"rain\.wav|list_objects"):
            METHODS[method](open_store(away), SOME)


def test_a_download_that_breaks_off_is_unavailable(aws_settings: Settings) -> None:
    """Half a body is not taken for the object."""
    with _server(200, 100, b"half") as url:
        away = aws_settings.model_copy(update={"s3_endpoint_url": url})
        with pytest.raises(Unavailable, match=r"rain\.wav"):
            open_store(away).read(SOME)
