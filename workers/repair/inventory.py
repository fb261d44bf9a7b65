"""A bucket's objects as S3 Inventory listed them: a file where LIST would be asked for hours.

    s3://reports/sounds/daily/2026-11-30T01-00Z/manifest.json ──> names data files ──> rows, in any
                                                                  CSV, Parquet, ORC    order

What it says was so when it was begun, or somewhat before; so what changed since is not held against
it (``comparison``), and whoever syncs a key looks at the bucket itself.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from audiofuse.core.errors import ConfigurationError, ObjectChanged, Unavailable
from audiofuse.core.items import ObjectInfo
from audiofuse.core.settings import Settings
from audiofuse.core.storage.mounts import MountedStore
from audiofuse.core.storage.store import S3_SCHEME, Store, bucket_name, open_store
from audiofuse.workers.repair.columnar import check_readable, columns_in, rows_of

CSV, COLUMNAR = "CSV", ("Parquet", "ORC")
NEEDED = ("Key", "LastModifiedDate", "ETag")  # Key is always there, the others are optional fields
MOST_MANIFEST_BYTES = 64 * 1024**2
# Changes up to so long before an inventory was begun may be missing in it: S3 promises them later.
# Raised, more that differs is left to the next comparison; lowered, more keys are synced in vain.
MARGIN_S = 3600
Rows = Iterator[Mapping[str, Any]]


@dataclass(frozen=True)
class Listing:
    """Objects of a bucket, in any order; changes after ``as_of_ms`` (Unix time) may be missing."""

    objects: Iterable[ObjectInfo]
    as_of_ms: float
    is_inventory: bool = True


@dataclass(frozen=True)
class _Bucket:
    """Whose inventory it is, and which of its keys are meant; ``top`` is put before each."""

    settings: Settings  # of a deployment that has this bucket alone
    prefix: str
    top: str = ""


def open_inventory(settings: Settings, place: str, prefix: str = "") -> Listing:
    """Return what an inventory of the settings' bucket lists under ``prefix``.

    Of several buckets ``prefix`` names the one. ``place`` is that of its manifest:
    ``s3://bucket/.../manifest.json``, read with the bucket's endpoint and credentials, or a path
    whose data files lie beside it. Raises ``ConfigurationError`` for what is no inventory of this
    bucket that can be read; while its rows are read, likewise, and ``Unavailable`` where they end
    too soon.
    """
    bucket = _meant(settings, prefix)
    store, key = _opened(bucket.settings, place)
    manifest = _manifest(store, key, place)
    source, name = str(manifest.get("sourceBucket", "")), bucket_name(bucket.settings)
    if source != name:
        raise ConfigurationError(f"{place} lists {source}, and not {name}")
    format_, schema = str(manifest.get("fileFormat")), str(manifest.get("fileSchema", ""))
    if format_ in COLUMNAR:
        check_readable(format_)
        columns = columns_in(schema)
    elif format_ == CSV:
        columns = [each.strip() for each in schema.split(",")]
    else:
        known = ", ".join([CSV, *COLUMNAR])
        raise ConfigurationError(f"{place}: {format_} is not read; of inventories {known} are")
    if lacking := [each for each in NEEDED if each not in columns]:
        raise ConfigurationError(f"{place} lacks {', '.join(lacking)}: add these optional fields")
    try:
        as_of_ms = int(manifest["creationTimestamp"]) - MARGIN_S * 1000
        files = [(str(each["key"]), str(each["MD5checksum"])) for each in manifest["files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{place} is no inventory's manifest: {error!r}") from error
    read = _csv_rows if format_ == CSV else partial(rows_of, format_=format_)
    return Listing(_objects(store, files, partial(read, columns=columns), bucket), as_of_ms)


def _meant(settings: Settings, prefix: str) -> _Bucket:
    """Return the bucket that is meant: the only one, or that which the prefix names."""
    if not settings.buckets:
        return _Bucket(settings, prefix)
    store = open_store(settings)
    assert isinstance(store, MountedStore)
    if (found := store.meant(prefix)) is None:
        raise ConfigurationError(
            "an inventory is of one bucket: say by --prefix of which, and below its address; there "
            f"are {', '.join(each.top for each in store.mounts.values() if each.store)}"
        )
    mounted, inner = found
    return _Bucket(mounted.settings, inner, mounted.top)


def _opened(settings: Settings, place: str) -> tuple[Store, str]:
    """Return where an inventory lies, and its manifest's key there."""
    if place.startswith(S3_SCHEME):
        bucket, _, key = place.removeprefix(S3_SCHEME).partition("/")
        address = S3_SCHEME + bucket
    else:
        path = Path(place).absolute()
        address, key = str(path.parent), path.name
    return open_store(settings.model_copy(update={"bucket": address})), key


def _manifest(store: Store, key: str, place: str) -> Mapping[str, Any]:
    info = store.head(key)
    if info is None or info.size > MOST_MANIFEST_BYTES:
        raise ConfigurationError(f"{place} names no manifest, or one that is too large")
    try:
        manifest = json.loads(store.read(info))
    except (ValueError, ObjectChanged) as error:
        raise ConfigurationError(f"{place} is no inventory's manifest: {error}") from error
    if not isinstance(manifest, dict):
        raise ConfigurationError(f"{place} is no inventory's manifest")
    return manifest


def _objects(
    store: Store, files: Sequence[tuple[str, str]], read: Callable[[Path], Rows], bucket: _Bucket
) -> Iterator[ObjectInfo]:
    """Yield the objects of all data files, one after the other, each checked before it is read."""
    for key, checksum in files:
        info = store.head(key)
        if info is None:
            raise Unavailable(f"the inventory's file {key} is not there")
        with store.open(info) as path:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
            if found.hexdigest() != checksum:
                raise Unavailable(f"the inventory's file {key} is not what its manifest says")
            try:
                for row in read(path):
                    if _is_current(row) and row["Key"].startswith(bucket.prefix):
                        yield _object(row, bucket.top)
            except (EOFError, OSError, zlib.error, csv.Error, ValueError) as error:
                raise Unavailable(f"the inventory's file {key} cannot be read: {error}") from error


def _csv_rows(path: Path, columns: Sequence[str]) -> Rows:
    """Yield the rows of a file as those of the other formats are, whose keys are not quoted."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for values in csv.reader(file):
            row: dict[str, Any] = dict(zip(columns, values, strict=True))
            modified = datetime.fromisoformat(row["LastModifiedDate"])
            yield row | {
                "Key": unquote_plus(row["Key"], errors="strict"),
                "LastModifiedDate": round(modified.timestamp() * 1000),
                "IsLatest": row.get("IsLatest") != "false",
                "IsDeleteMarker": row.get("IsDeleteMarker") == "true",
            }


def _is_current(row: Mapping[str, Any]) -> bool:
    """Whether a row is of what is there, where all versions are listed."""
    return row.get("IsLatest") is not False and not row.get("IsDeleteMarker")


def _object(row: Mapping[str, Any], top: str) -> ObjectInfo:
    size, modified_ms = int(row.get("Size") or 0), int(row["LastModifiedDate"])
    return ObjectInfo(top + row["Key"], row["ETag"].strip('"'), size, modified_ms)
