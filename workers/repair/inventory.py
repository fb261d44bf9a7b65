"""A bucket's objects as S3 Inventory listed them: a file where LIST would be asked for hours.

    s3://reports/sounds/daily/2026-11-30T01-00Z/manifest.json ──> names data files ──> rows, in any
                                                                  CSV, by gzip         order

What it says was so when it was begun, or somewhat before; so what changed since is not held against
it (``comparison``), and whoever syncs a key looks at the bucket itself.
"""

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from audiofuse.core.errors import ConfigurationError, ObjectChanged, Unavailable
from audiofuse.core.items import ObjectInfo
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import S3_SCHEME, Store, bucket_name, open_store

NEEDED = ("Key", "LastModifiedDate", "ETag")  # Key is always there, the others are optional fields
MOST_MANIFEST_BYTES = 64 * 1024**2
# Changes up to so long before an inventory was begun may be missing in it: S3 promises them later.
# Raised, more that differs is left to the next comparison; lowered, more keys are synced in vain.
MARGIN_S = 3600


@dataclass(frozen=True)
class Listing:
    """Objects of a bucket, in any order; changes after ``as_of_ms`` (Unix time) may be missing."""

    objects: Iterable[ObjectInfo]
    as_of_ms: int


def open_inventory(settings: Settings, place: str, prefix: str = "") -> Listing:
    """Return what an inventory of the settings' bucket lists under ``prefix``.

    ``place`` is that of its manifest: ``s3://bucket/.../manifest.json``, read with the settings'
    endpoint and credentials, or a path whose data files lie beside it. Raises
    ``ConfigurationError`` for what is no inventory of this bucket that can be read; while its rows
    are read, likewise, and ``Unavailable`` where they end too soon.
    """
    if settings.buckets:
        raise ConfigurationError("an inventory is compared with an only bucket, AUDIOFUSE_BUCKET")
    store, key = _opened(settings, place)
    manifest = _manifest(store, key, place)
    source = str(manifest.get("sourceBucket", ""))
    if source != bucket_name(settings):
        raise ConfigurationError(f"{place} lists {source}, and not {bucket_name(settings)}")
    if manifest.get("fileFormat") != "CSV":
        detail = f"{manifest.get('fileFormat')} is not read: have S3 write inventories as CSV"
        raise ConfigurationError(f"{place}: {detail}")
    columns = [each.strip() for each in str(manifest.get("fileSchema", "")).split(",")]
    if lacking := [each for each in NEEDED if each not in columns]:
        raise ConfigurationError(f"{place} lacks {', '.join(lacking)}: add these optional fields")
    try:
        as_of_ms = int(manifest["creationTimestamp"]) - MARGIN_S * 1000
        files = [(str(each["key"]), str(each["MD5checksum"])) for each in manifest["files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{place} is no inventory's manifest: {error!r}") from error
    return Listing(_objects(store, files, columns, prefix), as_of_ms)


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
    store: Store, files: Sequence[tuple[str, str]], columns: Sequence[str], prefix: str
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
            yield from _rows(path, key, columns, prefix)


def _rows(path: Path, key: str, columns: Sequence[str], prefix: str) -> Iterator[ObjectInfo]:
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            for values in csv.reader(file):
                row = dict(zip(columns, values, strict=True))
                name = unquote_plus(row["Key"], errors="strict")
                if _is_current(row) and name.startswith(prefix):
                    modified = datetime.fromisoformat(row["LastModifiedDate"])
                    modified_ms = round(modified.timestamp() * 1000)
                    etag = row["ETag"].strip('"')
                    yield ObjectInfo(name, etag, int(row.get("Size") or 0), modified_ms)
    except (EOFError, OSError, zlib.error, csv.Error, ValueError) as error:
        raise Unavailable(f"the inventory's file {key} cannot be read: {error}") from error


def _is_current(row: Mapping[str, str]) -> bool:
    """Whether a row is of what is there, where all versions are listed."""
    return row.get("IsLatest", "true") != "false" and row.get("IsDeleteMarker") != "true"
