"""Where the bytes are: a bucket behind the S3 protocol, or a folder that stands in for one."""

import errno
import fcntl
import hashlib
import logging
import math
import os
import shutil
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from pathlib import Path
from stat import S_ISREG
from typing import IO, TYPE_CHECKING, Any, Protocol
from uuid import uuid4

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from core.errors import ConfigurationError, ObjectChanged, Unavailable
from core.items import ObjectInfo

if TYPE_CHECKING:
    from core.settings import Settings

log = logging.getLogger(__name__)

S3_SCHEME = "s3://"
CANNOT_BE_SHOWN = {"Cc", "Cs"}  # control characters, and what stands for bytes that are no UTF-8
NO_SUCH_NAME = {errno.ENAMETOOLONG, errno.ELOOP}
BUCKET_SEEN_S = 60  # a bucket is looked at this often at the most
GONE = frozenset({"404", "NoSuchKey", "NotFound", "412", "PreconditionFailed"})
CONTENDED = frozenset({"409", "ConditionalRequestConflict"})  # two wrote at once: one has won
LOCK = ".lock"


class Store(Protocol):
    """One bucket, read only. Every method raises ``Unavailable`` when the bucket cannot answer."""

    bucket: str

    def head(self, key: str) -> ObjectInfo | None:
        """Look at an object as it is now; ``None`` when there is none."""

    def read(self, info: ObjectInfo) -> bytes:
        """Return the whole of a small object; ``ObjectChanged`` if it is no longer this one."""

    def open(self, info: ObjectInfo) -> AbstractContextManager[Path]:
        """Lend the object as a local file; ``ObjectChanged`` if it is no longer this one."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List the objects whose key begins with ``prefix``, without their user metadata."""


def open_store(settings: "Settings") -> Store:
    """Open the bucket that the settings name: ``s3://name`` or a folder."""
    name = bucket_name(settings)
    if settings.bucket.startswith(S3_SCHEME):
        return S3Store(name, s3_client(settings))
    return FolderStore(Path(settings.bucket))


def bucket_name(settings: "Settings") -> str:
    """Return the name of the bucket that the settings name, without looking for it."""
    if not settings.bucket:
        msg = "no bucket is set: give AUDIOFUSE_BUCKET as s3://name or as a folder"
        raise ConfigurationError(msg)
    if not settings.bucket.startswith(S3_SCHEME):
        return _root(Path(settings.bucket)).name
    name = settings.bucket.removeprefix(S3_SCHEME).strip("/")
    if not name or "/" in name:
        msg = f"AUDIOFUSE_BUCKET names no bucket: {settings.bucket!r} (expected s3://name)"
        raise ConfigurationError(msg)
    return name


def _root(folder: Path) -> Path:
    return folder.expanduser().resolve()


def content_hash(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderStore:
    """A folder as a bucket: keys are relative paths, an etag is modification time and size."""

    def __init__(self, root: Path) -> None:
        """Stand in for the bucket named like the folder; the folder must exist."""
        self.root = _root(root)
        if not self.root.is_dir():
            msg = f"the bucket folder does not exist: {self.root}"
            raise ConfigurationError(msg)
        self.bucket = self.root.name

    def head(self, key: str) -> ObjectInfo | None:
        """Look at the file; a key that leaves the folder, or names no plain file, is no object."""
        path = os.path.join(self.root, key)  # noqa: PTH118 - most keys asked for are no object
        try:
            stat = os.stat(path)  # noqa: PTH116 - as above
            if not S_ISREG(stat.st_mode) or not self._is_inside(key):
                return None
        except (FileNotFoundError, NotADirectoryError, ValueError):
            self._check_root()
            return None
        except OSError as error:
            if error.errno in NO_SUCH_NAME or not self._is_inside(key):
                return None
            raise Unavailable(f"cannot look at {path}: {error.strerror}") from error
        return ObjectInfo(
            key=key,
            etag=f"{stat.st_mtime_ns:x}-{stat.st_size:x}",
            size=stat.st_size,
            modified_ms=stat.st_mtime_ns // 1_000_000,
        )

    def read(self, info: ObjectInfo) -> bytes:
        """Return the file's bytes."""
        with self.open(info) as path:
            return path.read_bytes()

    @contextmanager
    def open(self, info: ObjectInfo) -> Iterator[Path]:
        """Lend the file itself; whatever happens to a file that changed meanwhile is no verdict."""
        path = self.root / info.key
        try:
            path.open("rb").close()
        except OSError as error:
            self._check(info)
            raise Unavailable(f"cannot read {path}: {error.strerror}") from error
        try:
            yield path
        except Exception:
            self._check(info)
            raise
        self._check(info)

    def _is_inside(self, key: str) -> bool:
        """Whether the key is spelled as the folder lists it and leads nowhere else."""
        path = self.root / key
        return (
            path.as_posix() == f"{self.root.as_posix()}/{key}"
            and os.path.realpath(path.parent) == str(path.parent)
            and (not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(self.root))
        )

    def _check_root(self) -> None:
        """Tell a missing object from a missing folder, lest the whole index be emptied."""
        if not self.root.is_dir():
            raise Unavailable(f"the bucket folder is gone: {self.root}")

    def _check(self, info: ObjectInfo) -> None:
        now = self.head(info.key)
        if now is None or now.etag != info.etag:
            raise ObjectChanged(f"{info.key} was replaced or deleted")

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Walk the folder, each folder's files in order; links to folders are not followed."""
        self._check_root()
        above = prefix.rpartition("/")[0]
        if above and not self._is_inside(above):
            return
        for folder, folders, files in os.walk(self.root / above, onerror=_unreadable):
            folders.sort()
            for name in sorted(files):
                key = self.key_of(Path(folder, name))
                info = self.head(key) if key and key.startswith(prefix) else None
                if info:
                    yield info
        self._check_root()  # what vanished on the way was not listed

    def key_of(self, path: Path) -> str | None:
        """Return the key of a path in the folder; ``None``, and a warning, if it can be none."""
        key = path.relative_to(self.root).as_posix()
        if not any(unicodedata.category(character) in CANNOT_BE_SHOWN for character in key):
            return key
        log.warning("%r is not indexed: its name has control characters or is no UTF-8", key)
        return None


def _unreadable(error: OSError) -> None:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return  # a folder that is gone holds nothing
    raise Unavailable(f"cannot list {error.filename}: {error.strerror}") from error


class S3Store:
    """A bucket of anything that speaks S3."""

    def __init__(self, bucket: str, client: Any) -> None:
        """Read ``bucket`` through a boto3 S3 client."""
        self.bucket = bucket
        self._client = client
        self._bucket_seen = -math.inf  # when it was last known to exist, on the monotonic clock

    def head(self, key: str) -> ObjectInfo | None:
        """Ask for the object's headers."""
        try:
            answer = self._call(self._client.head_object, Key=key)
        except ObjectChanged:
            self._check_bucket()
            return None
        return ObjectInfo(
            key=key,
            etag=answer["ETag"].strip('"'),
            size=answer["ContentLength"],
            modified_ms=_whole_seconds(answer["LastModified"]),
            user_metadata={k.lower(): _decoded(v) for k, v in answer["Metadata"].items()},
        )

    def _check_bucket(self) -> None:
        """Tell a missing object from a missing bucket, lest the whole index be emptied."""
        if time.monotonic() > self._bucket_seen + BUCKET_SEEN_S:
            self._call(self._client.head_bucket)
            self._bucket_seen = time.monotonic()

    def read(self, info: ObjectInfo) -> bytes:
        """Get the object, provided that it is still this one."""
        with self.open(info) as path:
            return path.read_bytes()

    @contextmanager
    def open(self, info: ObjectInfo) -> Iterator[Path]:
        """Download to a temporary file that is gone afterwards."""
        answer = self._call(self._client.get_object, Key=info.key, IfMatch=info.etag)
        with tempfile.NamedTemporaryFile(prefix="audiofuse-") as file:
            try:
                shutil.copyfileobj(answer["Body"], file)
            except (BotoCoreError, OSError) as error:
                raise Unavailable(f"reading s3://{self.bucket}/{info.key}: {error}") from error
            file.flush()
            yield Path(file.name)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List page by page, in the order of keys."""
        token: dict[str, str] = {}
        while True:
            page = self._call(self._client.list_objects_v2, Prefix=prefix, **token)
            for entry in page.get("Contents", ()):
                yield ObjectInfo(
                    key=entry["Key"],
                    etag=entry["ETag"].strip('"'),
                    size=entry["Size"],
                    modified_ms=_whole_seconds(entry["LastModified"]),
                )
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _call(self, method: Callable[..., Any], **arguments: str) -> Any:
        where = f"{method.__name__} s3://{self.bucket}/{arguments.get('Key', '')}"
        try:
            return method(Bucket=self.bucket, **arguments)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in GONE and "Key" in arguments:
                raise ObjectChanged(f"{where}: {code}") from error
            raise Unavailable(f"{where}: {error}") from error
        except BotoCoreError as error:
            raise Unavailable(f"{where}: {error}") from error


def s3_client(settings: "Settings", service: str = "s3") -> Any:
    """Make a boto3 client (``s3`` or ``sqs``) for the endpoint and credentials of the settings.

    Credentials that are not set come from boto3's own chain (environment, profile, role).
    """
    secret = settings.s3_secret_access_key
    try:
        return boto3.client(
            service,
            endpoint_url=settings.s3_endpoint_url,
            region_name=settings.s3_region,
            aws_access_key_id=settings.s3_access_key_id,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                connect_timeout=5,
                read_timeout=60,
                max_pool_connections=settings.in_hand,  # a thread for each message
                retries={"mode": "standard", "max_attempts": 3},
                # Not every S3 server knows the newer default checksums.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
    except (ValueError, BotoCoreError) as error:
        raise ConfigurationError(
            f"AUDIOFUSE_S3_ENDPOINT_URL or AUDIOFUSE_S3_REGION is wrong: {error}"
        ) from error


def _whole_seconds(modified: datetime) -> int:
    """Return milliseconds. Some servers list fractions of a second that no header has."""
    return int(modified.timestamp()) * 1000


def _decoded(value: str) -> str:
    """Undo RFC 2047, in which S3 returns user metadata that is not ASCII."""
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, ValueError):
        return value


class Files(Protocol):
    """Small files and large ones that this product keeps; names may have folders in them.

    Every method raises ``Unavailable`` when nobody answers.
    """

    root: Path | None  # the folder that holds them, if it is one

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Return a file's bytes and a tag of this content; ``None`` when there is none."""

    def put(self, name: str, content: bytes, tag: str | None) -> None:
        """Write if the file still is the one with ``tag``, or, without a tag, if there is none.

        Raises ``ObjectChanged``, and writes nothing, if that is not so. Of writers that look at
        the same file and then write it, exactly one succeeds.
        """

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file to here."""

    def download(self, name: str, path: Path) -> None:
        """Copy to a local file; raises ``ObjectChanged`` when there is none of this name."""

    def list(self) -> Iterator[tuple[str, int]]:
        """Walk over all names and sizes in bytes."""


def open_files(place: str, settings: "Settings") -> Files:
    """Open ``s3://bucket/prefix``, with the settings' endpoint and credentials, or a folder."""
    if not place.startswith(S3_SCHEME):
        return FolderFiles(_root(Path(place)))
    bucket, _, prefix = place.removeprefix(S3_SCHEME).partition("/")
    if not bucket:
        raise ConfigurationError(f"{place!r} names no bucket (expected s3://bucket/prefix)")
    return S3Files(bucket, prefix.strip("/"), s3_client(settings))


class FolderFiles:
    """Files in a folder, which is made when the first is written."""

    def __init__(self, root: Path) -> None:
        """Keep them in ``root``."""
        self.root: Path | None = root
        self._root = root

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Return bytes and their hash."""
        try:
            content = (self._root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"cannot read {self._root / name}: {error.strerror}") from error
        return content, hashlib.sha256(content).hexdigest()

    def put(self, name: str, content: bytes, tag: str | None) -> None:
        """Compare and replace under a lock, of which the kernel frees whoever dies."""
        path = self._root / name
        with self._locked(), self._replacing(path) as file:
            known = self.get(name)
            if (known[1] if known else None) != tag:
                raise ObjectChanged(f"{path} was changed by somebody else")
            file.write(content)

    def upload(self, path: Path, name: str) -> None:
        """Copy it, whole or not at all."""
        with self._replacing(self._root / name) as file, path.open("rb") as source:
            shutil.copyfileobj(source, file)

    def download(self, name: str, path: Path) -> None:
        """Copy it."""
        try:
            shutil.copyfile(self._root / name, path)
        except FileNotFoundError as error:
            raise ObjectChanged(f"there is no {self._root / name}") from error
        except OSError as error:
            raise Unavailable(f"cannot copy {self._root / name}: {error.strerror}") from error

    def list(self) -> Iterator[tuple[str, int]]:
        """Walk the folder."""
        for path in sorted(self._root.rglob("*")):
            if path.is_file():
                yield path.relative_to(self._root).as_posix(), path.stat().st_size

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._writing(self._root / LOCK) as path, path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _replacing(self, path: Path) -> Iterator[IO[bytes]]:
        """Lend a file that takes the place of ``path`` once it is written and on the disk."""
        with self._writing(self._root / f".writing-{uuid4()}") as temporary, self._writing(path):
            try:
                with temporary.open("xb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[Path]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield path
        except OSError as error:
            raise Unavailable(f"cannot write {path}: {error.strerror}") from error


class S3Files:
    """Files under a prefix of a bucket of anything that speaks S3, conditional writes included."""

    root: Path | None = None

    def __init__(self, bucket: str, prefix: str, client: Any) -> None:
        """Keep them in ``bucket`` under ``prefix``, through a boto3 S3 client."""
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""
        self._client = client

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Return bytes and ETag."""
        try:
            with self._reporting(name):
                answer = self._client.get_object(**self._where(name))
                return answer["Body"].read(), answer["ETag"]
        except ObjectChanged:
            return None

    def put(self, name: str, content: bytes, tag: str | None) -> None:
        """Have the server compare and write."""
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
        with self._reporting(name):
            self._client.put_object(**self._where(name), Body=content, **condition)

    def upload(self, path: Path, name: str) -> None:
        """Upload it, in parts if it is large."""
        with self._reporting(name):
            self._client.upload_file(str(path), **self._where(name))

    def download(self, name: str, path: Path) -> None:
        """Download it, in parts if it is large."""
        with self._reporting(name):
            self._client.download_file(**self._where(name), Filename=str(path))

    def list(self) -> Iterator[tuple[str, int]]:
        """List page by page."""
        with self._reporting(""):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix
            )
            for page in pages:
                for entry in page.get("Contents", ()):
                    yield entry["Key"].removeprefix(self._prefix), entry["Size"]

    def _where(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + name}

    @contextmanager
    def _reporting(self, name: str) -> Iterator[None]:
        where = f"s3://{self._bucket}/{self._prefix}{name}"
        try:
            yield
        except ClientError as error:
            if error.response["Error"]["Code"] in GONE | CONTENDED:
                raise ObjectChanged(f"{where}: {error}") from error
            raise Unavailable(f"{where}: {error}") from error
        except (BotoCoreError, Boto3Error, OSError) as error:
            raise Unavailable(f"{where}: {error}") from error
