"""Where an upload goes: into a folder or an S3 bucket, whole or not at all, over nothing unseen."""

import errno
import os
import shutil
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from audiofuse.core.errors import ObjectChanged, Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.mounts import MountedStore
from audiofuse.core.storage.s3 import S3Bucket
from audiofuse.core.storage.store import FolderStore, Store

MOST_BYTES = 5 * 1024**3  # that S3 takes at once
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK}  # of a file system that has no second names
NO_PLACE = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


class NoPlace(Exception):  # noqa: N818 - it is what is wrong
    """Nothing can lie under this key."""


class Place(Protocol):
    """What takes uploads."""

    def put(self, path: Path, key: str, etag: str | None) -> None:
        """Make a file the object ``key``, if that still has ``etag``, or if there is none.

        Raises ``ObjectChanged``, and writes nothing, if that is not so; ``NoPlace`` if there can be
        no such object, and ``Unavailable`` where nothing can be written.
        """


def open_place(settings: Settings, store: Store) -> Place:
    """Return what writes to the buckets that ``store`` reads."""
    if isinstance(store, MountedStore):
        return MountedPlace(store)
    if isinstance(store, FolderStore):
        return FolderPlace(store)
    return S3Place(S3Bucket(store.bucket, settings))


class S3Place:
    """A bucket of anything that speaks S3: one conditional PUT."""

    def __init__(self, bucket: S3Bucket) -> None:
        """Write to ``bucket``."""
        self._bucket = bucket

    def put(self, path: Path, key: str, etag: str | None) -> None:
        """Have the server compare and write."""
        with path.open("rb") as file:
            self._bucket.put(key, file, f'"{etag}"' if etag else None)


class MountedPlace:
    """Several buckets: each key goes where it lies."""

    def __init__(self, store: MountedStore) -> None:
        """Write to the buckets of ``store``."""
        self._store = store
        self._places = {
            name: open_place(each.settings, each.store)
            for name, each in store.mounts.items()
            if each.store is not None
        }

    def put(self, path: Path, key: str, etag: str | None) -> None:
        """Write it there; ``NoPlace`` outside of what is meant of a bucket."""
        found = self._store.resolved(key)
        if found is None:
            raise NoPlace(f"{key} lies in no part of a bucket that is indexed")
        self._places[self._store.place(key)[0]].put(path, found[1], etag)


class FolderPlace:
    """A folder: a file beside the place, under a name that is no sound's, then the name."""

    def __init__(self, store: FolderStore) -> None:
        """Write to the folder of ``store``."""
        self._store = store

    def put(self, path: Path, key: str, etag: str | None) -> None:
        """Copy it, write it through to the disk, and let it have the name."""
        place = self._store.root / key
        try:
            self._check(key, etag)
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.parent / f".{uuid4()}.part"
            try:
                _copy(path, temporary)
                if etag is None:
                    _name_anew(temporary, place)
                else:
                    self._check(key, etag)
                    temporary.replace(place)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in NO_PLACE:
                raise NoPlace(f"{key} cannot be written: {error.strerror}") from error
            raise Unavailable(f"cannot write {place}: {error.strerror}") from error

    def _check(self, key: str, etag: str | None) -> None:
        if not self._store.is_inside(key):
            raise NoPlace(f"{key} leads by a link")
        now = self._store.head(key)
        if (now.etag if now else None) != etag:
            raise ObjectChanged(f"{key} was written or deleted by somebody else")


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as written:
        shutil.copyfileobj(read, written)
        written.flush()
        os.fsync(written.fileno())


def _name_anew(temporary: Path, place: Path) -> None:
    """Give a file a name that nothing has; ``ObjectChanged`` if something has it."""
    try:
        place.hardlink_to(temporary)
    except FileExistsError as error:
        raise ObjectChanged(f"{place.name} was written by somebody else") from error
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if place.exists():
            raise ObjectChanged(f"{place.name} was written by somebody else") from error
        temporary.rename(place)
