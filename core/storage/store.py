"""Where the bytes are: a bucket behind the S3 protocol, or a folder that stands in for one."""

import errno
import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Protocol

from audiofuse.core.errors import (
    ConfigurationError,
    ObjectChanged,
    Unavailable,
)
from audiofuse.core.items import ObjectInfo
from audiofuse.core.query import Filter
from audiofuse.core.storage.mounts import SETTING, Mount, Mounted, MountedStore, read_mounts, split
from audiofuse.core.storage.objects import OneBucket
from audiofuse.core.storage.refusals import Denied
from audiofuse.core.storage.s3 import S3Bucket, S3Store

if TYPE_CHECKING:
    from audiofuse.core.settings import Settings

log = logging.getLogger(__name__)

S3_SCHEME = "s3://"
CANNOT_BE_SHOWN = {"Cc", "Cs"}  # control characters, and what stands for bytes that are no UTF-8
NOT_LISTED = {"", ".", ".."}  # what a key has between its slashes that no listing shows
NO_SUCH_NAME = {errno.ENAMETOOLONG, errno.ELOOP}
BUCKET_SEEN_S = 60  # a bucket is looked at this often at the most
MAY_NOT = {errno.EACCES, errno.EPERM}
MAX_KEY_BYTES = 1024  # S3's own limit: a longer name is no object, and S3 refuses to be asked


class Store(Protocol):
    """Buckets, read only. Every method raises ``Unavailable`` when a bucket cannot answer.

    What is refused for one object alone, while the bucket answers, is ``Rejected`` as
    ``unreadable`` by whatever asks for its bytes; its head is what can be known of it all the same.
    """

    bucket: str  # its name; empty of several

    def place(self, key: str) -> tuple[str, str]:
        """Return the bucket in which an object lies, and its key there: they name it for ever."""

    def where(self, prefix: str = "") -> Filter:
        """Return which items of an index are of objects whose keys begin with ``prefix``."""

    def parts(self, prefix: str = "") -> Sequence[str]:
        """Return the prefixes by which buckets are looked through one by one."""

    def head(self, key: str) -> ObjectInfo | None:
        """Look at an object as it is now; ``None`` when there is none."""

    def read(self, info: ObjectInfo) -> bytes:
        """Return the whole of a small object; ``ObjectChanged`` if it is no longer this one."""

    def part(self, info: ObjectInfo, first: int, count: int) -> bytes:
        """Return ``count`` bytes of the object from byte ``first`` on, which it must have."""

    def open(self, info: ObjectInfo) -> AbstractContextManager[Path]:
        """Lend the object as a local file; ``ObjectChanged`` if it is no longer this one."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """List the objects whose key begins with ``prefix``, without their user metadata."""


def open_store(settings: "Settings") -> Store:
    """Open what the settings name: ``s3://name``, a folder, or several of these."""
    if mounts := read_mounts(settings):
        return MountedStore({each.name: _mounted(each, settings) for each in mounts})
    name = bucket_name(settings)
    if settings.bucket.startswith(S3_SCHEME):
        public = settings.s3_public_url
        seen = settings.model_copy(update={"s3_endpoint_url": public}) if public else None
        return S3Store(S3Bucket(name, settings), S3Bucket(name, seen) if seen else None)
    return FolderStore(Path(settings.bucket))


def _mounted(mount: Mount, settings: "Settings") -> Mounted:
    """Open one of several; a folder that is away must not keep the others from being served."""
    own = mount.settings(settings)
    store: Store | None = None
    if mount.is_s3:
        store = open_store(own)
    elif mount.address is not None:
        store = FolderStore(Path(mount.address), may_be_away=True)
    return Mounted(mount.name, own, store, mount.prefix)


def has_bucket(settings: "Settings") -> bool:
    """Whether the settings name any bucket."""
    return bool(settings.bucket or settings.buckets)


def shown_bucket(settings: "Settings") -> str:
    """Return what the settings name, as it is told."""
    return ", ".join(each.name for each in read_mounts(settings)) or settings.bucket


def place_of(settings: "Settings", key: str) -> tuple[str, str]:
    """Return an object's bucket and its key there, without looking for it; see ``Store``."""
    return split(key) if read_mounts(settings) else (bucket_name(settings), key)


def bucket_name(settings: "Settings") -> str:
    """Return the name of the bucket that the settings name, without looking for it."""
    if not settings.bucket:
        msg = f"no bucket is set: give AUDIOFUSE_BUCKET as s3://name or a folder, or {SETTING}"
        raise ConfigurationError(msg)
    if not settings.bucket.startswith(S3_SCHEME):
        return folder_root(Path(settings.bucket)).name
    name = settings.bucket.removeprefix(S3_SCHEME).strip("/")
    if not name or "/" in name:
        msg = f"AUDIOFUSE_BUCKET names no bucket: {settings.bucket!r} (expected s3://name)"
        raise ConfigurationError(msg)
    return name


def folder_root(folder: Path) -> Path:
    """Return the folder that a user names, as the same path however it is spelled."""
    return folder.expanduser().resolve()


def content_hash(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderStore(OneBucket):
    """A folder as a bucket: keys are relative paths, an etag is modification time and size."""

    def __init__(self, root: Path, *, may_be_away: bool = False) -> None:
        """Stand in for the bucket named like the folder, which must exist unless it may be away."""
        self.root = folder_root(root)
        if not (may_be_away or self.root.is_dir()):
            msg = f"the bucket folder does not exist: {self.root}"
            raise ConfigurationError(msg)
        self.bucket = self.root.name

    def head(self, key: str) -> ObjectInfo | None:
        """Look at the file; a key that leaves the folder, or names no plain file, is no object."""
        path = os.path.join(self.root, key)  # noqa: PTH118 - most keys asked for are no object
        try:
            stat = os.stat(path)  # noqa: PTH116 - as above
            if not S_ISREG(stat.st_mode) or not self.is_inside(key):
                return None
        except (FileNotFoundError, NotADirectoryError, ValueError):
            self._check_root()
            return None
        except OSError as error:
            if error.errno in NO_SUCH_NAME or not self.is_inside(key):
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

    def part(self, info: ObjectInfo, first: int, count: int) -> bytes:
        """Return these bytes of the file."""
        with self.open(info) as path, path.open("rb") as file:
            file.seek(first)
            return file.read(count)

    @contextmanager
    def open(self, info: ObjectInfo) -> Iterator[Path]:
        """Lend the file itself; whatever happens to a file that changed meanwhile is no verdict."""
        path = self.root / info.key
        try:
            path.open("rb").close()
        except OSError as error:
            self._check(info)
            detail = f"cannot read {path}: {error.strerror}"
            if error.errno in MAY_NOT:
                raise Denied(detail) from error
            raise Unavailable(detail) from error
        try:
            yield path
        except Exception:
            self._check(info)
            raise
        self._check(info)

    def is_inside(self, key: str) -> bool:
        """Whether the key is spelled as the folder lists it and leads nowhere else.

        Three times a message, and therefore without ``Path``, which takes four times as long.
        """
        *folders, name = key.split("/")
        if not NOT_LISTED.isdisjoint((*folders, name)):
            return False
        above = str(self.root)
        for folder in folders:
            above = f"{above}/{folder}"
            if os.path.islink(above):  # noqa: PTH114 - as above
                return False
        path = f"{above}/{name}"
        if not os.path.islink(path):  # noqa: PTH114 - as above
            return True
        return Path(os.path.realpath(path)).is_relative_to(self.root)

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
        if above and not self.is_inside(above):
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
