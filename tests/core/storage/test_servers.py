"""S3 servers asked without boto3: each says the same as to boto3, of every key and state."""

import contextlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from botocore.exceptions import ClientError

from audiofuse.core.errors import AudiofuseError, ObjectChanged, Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import BotoBucket, s3_client
from audiofuse.core.storage.connections import Unanswered
from audiofuse.core.storage.lean import LeanBucket
from audiofuse.core.storage.s3 import S3Bucket, S3Store
from audiofuse.core.storage.store import open_store

KINDS = ("moto", "seaweedfs", "minio")
KEYS = [
    "rain.wav", "rain heavy.wav", "rain+heavy.wav", "rain%20heavy.wav", "100%.wav", "räin.wav",
    "ra\u0308in.wav", "\N{FILE FOLDER}/雨.wav", "a&b=c?d#e.wav", 'it\'s "quoted" <here>.wav',
    "a:c*d|e.wav", "-rf ~.wav", "new\nline.wav", "tab\there.wav", "\x01.wav", "~/x.wav",
    "a//b.wav", "/leading.wav", "./b.wav", "a/../b.wav", "b.wav/", " b.wav ", "back\\slash.wav",
    "(1)[2]{3}^`$,;@!.wav", "=?utf-8?q?a?=.wav", "😀.wav", "x" * 200 + ".wav",
]  # fmt: skip
NOT_EVERYWHERE = 15  # of these, what a server that maps keys to paths may refuse or spell anew


class Server:
    """A bucket on one kind of server, asked in both ways."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.bucket.removeprefix("s3://")
        self.client = s3_client(settings)
        self.boto = BotoBucket(self.name, self.client)
        bucket = S3Bucket(self.name, settings)
        self.lean: LeanBucket = bucket._lean

    def put(self, key: str, content: bytes, **options: Any) -> None:
        """Put an object."""
        self.client.put_object(Bucket=self.name, Key=key, Body=content, **options)

    def both(self, ask: Callable[[Any], object]) -> object:
        """Ask in both ways; return the answer, which is one, or ``None`` where there is none."""
        try:
            lean = ask(self.lean)
        except Unanswered:
            with pytest.raises(AudiofuseError):
                ask(self.boto)
            return None
        assert lean == ask(self.boto)
        return lean


@pytest.fixture(params=KINDS)
def server(
    request: pytest.FixtureRequest, s3_on: Callable[[str], Settings], no_pauses: None
) -> Server:
    """Return an empty bucket on each kind of server."""
    del no_pauses
    return Server(s3_on(request.param))


def _download(bucket: LeanBucket | BotoBucket, key: str, etag: str = "") -> tuple[str, bytes]:
    file = BytesIO()
    return bucket.download(key, etag, file), file.getvalue()


def test_every_key_is_asked_for_as_boto3_does(server: Server) -> None:
    """Headers, bytes and listings are equal, whatever a key is made of, and where it is none."""
    taken = 0
    for number, key in enumerate(KEYS):
        with contextlib.suppress(ClientError):
            server.put(key, f"content {number}".encode(), Metadata={"Number": str(number)})
            taken += 1
    assert taken >= len(KEYS) - NOT_EVERYWHERE
    named = 0
    for key in KEYS:
        info: Any = server.both(lambda bucket, key=key: bucket.head(key))
        if info is not None:
            named += info.user_metadata == {"number": str(KEYS.index(key))}
            server.both(lambda bucket, info=info: _download(bucket, info.key, info.etag))
    assert named >= len(KEYS) - NOT_EVERYWHERE
    page: Any = server.both(lambda bucket: bucket.page("", None, 1000))
    assert len(page.objects) >= len(KEYS) - NOT_EVERYWHERE
    for prefix in ("r", "ra", "a/", "x" * 201, "räin.wav", "no such", "100%", "rain+"):
        server.both(lambda bucket, prefix=prefix: bucket.page(prefix, None, 1000))


def test_pages_follow_each_other(server: Server) -> None:
    """What asks for the next page is understood, page after page, to the last."""
    for number in range(5):
        server.put(f"{number}+ü.wav", b"x")
    for bucket in (server.lean, server.boto):
        keys, token = [], None
        while True:
            page = bucket.page("", token, 2)
            assert len(page.objects) <= 2
            keys += [each.key for each in page.objects]
            token = page.token
            if token is None:
                break
        assert keys == [f"{number}+ü.wav" for number in range(5)]


@pytest.mark.parametrize("size", [0, 1, 640_000, 5_000_001])
def test_bytes_arrive_whole(server: Server, size: int) -> None:
    """An object of any size is what was put, its connection good for the next request."""
    content = bytes(range(256)) * (size // 256) + b"!" * (size % 256)
    server.put("rain.wav", content)
    info: Any = server.both(lambda bucket: bucket.head("rain.wav"))
    assert info.size == size
    for _ in range(2):
        assert _download(server.lean, "rain.wav", info.etag)[1] == content
    for first in {0, size // 2, size - 1} if size else ():
        count = min(1000, size - first)
        part = server.both(
            lambda bucket, at=(first, count): bucket.part("rain.wav", info.etag, *at)
        )
        assert part == content[first : first + count]
    assert server.both(lambda bucket: bucket.exists()) is None


def test_an_object_in_parts_is_one(server: Server) -> None:
    """An etag that is no hash of the bytes is as good as any other."""
    part = b"x" * 5 * 1024**2
    place = {"Bucket": server.name, "Key": "long.wav"}
    upload = server.client.create_multipart_upload(**place)["UploadId"]
    parts = []
    for number in (1, 2):
        more = {"PartNumber": number, "UploadId": upload, "Body": part}
        etag = server.client.upload_part(**place, **more)["ETag"]
        parts.append({"PartNumber": number, "ETag": etag})
    server.client.complete_multipart_upload(
        **place, UploadId=upload, MultipartUpload={"Parts": parts}
    )
    info: Any = server.both(lambda bucket: bucket.head("long.wav"))
    assert info.size == 2 * len(part)
    assert _download(server.lean, "long.wav", info.etag)[1] == 2 * part


def test_what_is_not_there(server: Server) -> None:
    """A missing object has no head, and boto3 says what a missing bucket means."""
    assert server.both(lambda bucket: bucket.head("none.wav")) is None
    with pytest.raises(Unanswered):
        _download(server.lean, "none.wav")
    away = server.settings.model_copy(update={"bucket": "s3://no-such-bucket"})
    store = open_store(away)
    with pytest.raises(Unavailable, match="no-such-bucket"):
        store.head("none.wav")
    with pytest.raises(Unavailable, match="no-such-bucket"):
        list(store.list())


def test_another_object_is_never_read_instead(server: Server) -> None:
    """Each kind of server compares the etag before it sends a byte."""
    server.put("rain.wav", b"sound")
    store = S3Store(S3Bucket(server.name, server.settings))
    seen = store.head("rain.wav")
    assert seen
    assert store.read(seen) == b"sound"
    server.put("rain.wav", b"another sound")
    with pytest.raises(ObjectChanged):
        store.read(seen)
    with pytest.raises(ObjectChanged):
        store.part(seen, 0, 5)
    server.client.delete_object(Bucket=server.name, Key="rain.wav")
    with pytest.raises(ObjectChanged):
        store.read(seen)


def test_a_wrong_key_is_told_by_boto3(s3_on: Callable[[str], Settings]) -> None:
    """A server that checks signatures refuses one that is not right, and says so."""
    for kind in ("seaweedfs", "minio"):
        secret = {"s3_secret_access_key": type(s3_on(kind).s3_secret_access_key)("wrong")}
        store = open_store(s3_on(kind).model_copy(update=secret))
        with pytest.raises(Unavailable, match="SignatureDoesNotMatch"):
            list(store.list())
