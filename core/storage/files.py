"""What the product keeps for itself: files in a folder or in S3, with conditional writes.

A bucket that is indexed is only read, through ``core/storage/store.py``; these are written.
"""

import fcntl
import hashlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol
from uuid import uuid4

from audiofuse.core.errors import ConfigurationError, ObjectChanged, Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.s3 import S3Bucket
from audiofuse.core.storage.store import S3_SCHEME, folder_root

LOCK = ".lock"
TRIES = 20  # to be the faster one of several writers; each further try waits longer
PAUSE_S = 0.05  # after the first try that was not


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


def open_files(place: str, settings: Settings) -> Files:
    """Open ``s3://bucket/prefix``, with the settings' endpoint and credentials, or a folder."""
    if not place.startswith(S3_SCHEME):
        return FolderFiles(folder_root(Path(place)))
    bucket, _, prefix = place.removeprefix(S3_SCHEME).partition("/")
    if not bucket:
        raise ConfigurationError(f"{place!r} names no bucket (expected s3://bucket/prefix)")
    return S3Files(S3Bucket(bucket, settings), prefix.strip("/"))


def replace_file(files: Files, name: str, change: Callable[[bytes], bytes]) -> None:
    """Replace a file by what ``change`` makes of it, however often others are faster.

    ``change`` gets ``b""`` where there is none, and may be asked several times. Raises
    ``Unavailable`` when too many write it.
    """
    for number in range(TRIES):
        content, tag = files.get(name) or (b"", None)
        changed = change(content)
        if changed == content:
            return
        try:
            files.put(name, changed, tag)
        except ObjectChanged:
            time.sleep(random.uniform(0, PAUSE_S * 2 ** min(number, 5)))  # noqa: S311 - no secret
        else:
            return
    raise Unavailable(f"{name} is written by too many at once")


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

    def __init__(self, bucket: S3Bucket, prefix: str) -> None:
        """Keep them in ``bucket`` under ``prefix``."""
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""

    def get(self, name: str) -> tuple[bytes, str] | None:
        """Return bytes and ETag."""
        content = BytesIO()
        try:
            tag = self._bucket.download(self._prefix + name, "", content)
        except ObjectChanged:
            return None
        return content.getvalue(), tag

    def put(self, name: str, content: bytes, tag: str | None) -> None:
        """Have the server compare and write."""
        self._bucket.put(self._prefix + name, content, tag)

    def upload(self, path: Path, name: str) -> None:
        """Upload it, in parts if it is large."""
        self._bucket.upload(path, self._prefix + name)

    def download(self, name: str, path: Path) -> None:
        """Download it, in parts if it is large."""
        self._bucket.fetch(self._prefix + name, path)

    def list(self) -> Iterator[tuple[str, int]]:
        """List page by page."""
        for info in self._bucket.list(self._prefix):
            yield info.key.removeprefix(self._prefix), info.size
