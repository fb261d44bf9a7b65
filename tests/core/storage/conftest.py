"""Fixtures: an empty bucket of each kind, with the means to change what is in it."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Say, Wire

from audiofuse.core.items import ObjectInfo
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.s3 import S3Store
from audiofuse.core.storage.store import FolderStore, open_store


class Bucket:
    """A store, and what a test asks of it."""

    store: Any

    def info(self, key: str) -> ObjectInfo:
        """Return what is known of an object that is there."""
        info: ObjectInfo | None = self.store.head(key)
        assert info is not None
        return info

    def keys(self, prefix: str = "") -> list[str]:
        """Return the keys that are listed."""
        return [info.key for info in self.store.list(prefix)]


class FolderBucket(Bucket):
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


class S3Bucket(Bucket):
    """A bucket of moto's server, changed through boto3."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.client = s3_client(settings)
        self.name = settings.bucket.removeprefix("s3://")
        store = open_store(settings)
        assert isinstance(store, S3Store)
        self.store: S3Store = store

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


@pytest.fixture
def boto3(aws_settings: Settings) -> S3Bucket:
    """Return an empty bucket behind the S3 protocol that is read through boto3 alone."""
    bucket = S3Bucket(aws_settings)
    bucket.store._s3._rests_until = math.inf
    return bucket


@pytest.fixture(params=["folder", "s3", "boto3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """Return an empty bucket of either kind."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let boto3 try again at once."""
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)


@pytest.fixture
def wire(no_pauses: None) -> Iterator[Callable[[Say], Wire]]:
    """Return what runs a server that answers as it is told."""
    del no_pauses
    started: list[Wire] = []

    def run(say: Say) -> Wire:
        started.append(Wire(say))
        return started[-1]

    yield run
    for each in started:
        each.close()
