"""An inventory that S3 wrote stands for the listing of a bucket, as far as it knows."""

import gzip
import hashlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest
from pydantic import SecretStr

from audiofuse.core.errors import ConfigurationError, Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.store import FolderStore, open_store
from audiofuse.workers.repair.comparison import compare
from audiofuse.workers.repair.findings import Finding
from audiofuse.workers.repair.inventory import MARGIN_S, Listing, open_inventory

World = Any  # see conftest.py
Row = tuple[Any, ...]
SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
COLUMNS = ["bucket", "key", "version_id", "is_latest", "is_delete_marker", "size",
           "last_modified_date", "e_tag"]  # fmt: skip
TIME = COLUMNS.index("last_modified_date")
SCHEMAS = {
    "CSV": SCHEMA,
    "Parquet": "message s3.inventory { required binary bucket (UTF8); required binary key (UTF8); "
    "optional binary version_id (UTF8); optional boolean is_latest; optional boolean "
    "is_delete_marker; optional int64 size; optional int64 last_modified_date (TIMESTAMP_MILLIS); "
    "optional binary e_tag (UTF8);}",
    "ORC": "struct<bucket:string,key:string,version_id:string,is_latest:boolean,"
    "is_delete_marker:boolean,size:bigint,last_modified_date:timestamp,e_tag:string>",
}
SUFFIXES = {"CSV": "csv.gz", "Parquet": "parquet", "ORC": "orc"}
FORMATS = pytest.mark.parametrize("format_", list(SUFFIXES))
DAY_S = 24 * 3600


def _write(world: World, folder: Path, at_s: float, *, format_: str = "CSV", **changes: Any) -> str:
    """Write an inventory of a world's bucket as S3 does, and return its manifest's path."""
    rows = [
        (world.store.bucket, each.key, "v1", True, False, each.size,
         datetime.fromtimestamp(each.modified_ms / 1000, UTC), each.etag)
        for each in world.store.list()
    ]  # fmt: skip
    rows += [
        (world.store.bucket, "owl.wav", "v0", False, False, 1, rows[0][6], "old"),
        (world.store.bucket, "deleted.wav", "v0", True, True, None, rows[0][6], None),
    ]
    rows.reverse()  # in no order
    folder.mkdir(exist_ok=True)
    files = []
    for part in range(2):
        name = f"{part}.{SUFFIXES[format_]}"
        content = WRITERS[format_](rows[part::2])
        (folder / name).write_bytes(content)
        checksum = hashlib.md5(content).hexdigest()
        files.append({"key": name, "size": len(content), "MD5checksum": checksum})
    manifest = {
        "sourceBucket": world.store.bucket, "destinationBucket": "arn:aws:s3:::reports",
        "version": "2016-11-30", "creationTimestamp": str(round(at_s * 1000)),
        "fileFormat": format_, "fileSchema": SCHEMAS[format_], "files": files,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return str(folder / "manifest.json")


def _csv(rows: list[Row]) -> bytes:
    lines = []
    for bucket, key, version, latest, deleted, size, modified, etag in rows:
        said = (bucket, quote_plus(key), version, str(latest).lower(), str(deleted).lower(),
                "" if size is None else size, modified.isoformat(timespec="milliseconds"),
                etag or "")  # fmt: skip
        lines.append(",".join(f'"{each}"' for each in said) + "\n")
    return gzip.compress("".join(lines).encode())


def _table(rows: list[Row], *, zone: str | None) -> Any:
    pa = pytest.importorskip("pyarrow")
    texts, times = pa.string(), pa.timestamp("ms", zone) if zone else pa.timestamp("ns")
    types = (texts, texts, texts, pa.bool_(), pa.bool_(), pa.int64(), times, texts)
    plain = [(*row[:TIME], row[TIME].replace(tzinfo=None), *row[TIME + 1 :]) for row in rows]
    pairs = zip(zip(*plain, strict=True), types, strict=True)
    columns = [pa.array(each, type_) for each, type_ in pairs]
    return pa.table(columns, names=COLUMNS)


def _parquet(rows: list[Row]) -> bytes:
    table = _table(rows, zone="UTC")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(table, file, row_group_size=2, compression="gzip")
    return file.getvalue()


def _orc(rows: list[Row]) -> bytes:
    table = _table(rows, zone=None)
    from pyarrow import orc

    file = io.BytesIO()
    orc.write_table(table, file)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[Row]], bytes]] = {"CSV": _csv, "Parquet": _parquet, "ORC": _orc}


def _opened(world: World, place: str, prefix: str = "") -> Listing:
    return open_inventory(Settings(bucket=str(world.root)), place, prefix)


def _findings(world: World, listing: Listing) -> dict[Finding, list[str]]:
    with compare(
        world.store, world.index, world.generation, world.letters, listing=listing
    ) as comparison:
        return {each: keys for each in Finding if (keys := sorted(comparison.keys(each)))}


@FORMATS
def test_an_inventory_lists_what_the_bucket_has(world: World, tmp_path: Path, format_: str) -> None:
    """Every object as it is now, whatever its name; no older version, nothing that was deleted."""
    world.put("a b+c/ü%20.wav")
    place = _write(world, tmp_path / "inventory", 1e9 + DAY_S, format_=format_)
    listing = _opened(world, place)
    objects = sorted(listing.objects, key=lambda each: each.key)
    assert objects == sorted(world.store.list(), key=lambda each: each.key)
    assert listing.as_of_ms == (1e9 + DAY_S - MARGIN_S) * 1000
    night = _opened(world, str(tmp_path / "inventory/manifest.json"), "night/")
    assert {each.key for each in night.objects} == {each.key for each in world.store.list("night/")}


@FORMATS
def test_what_an_inventory_knows_is_compared(world: World, tmp_path: Path, format_: str) -> None:
    """The same differences are found as by listing."""
    world.put("new.wav", "owl.wav")
    world.delete("night/crow + 100%é.wav")
    place = _write(world, tmp_path / "inventory", 1e9 + DAY_S, format_=format_)
    found = _findings(world, _opened(world, place))
    assert found == {
        Finding.MISSING: ["new.wav"],
        Finding.OUTDATED: ["owl.wav"],
        Finding.ORPHANED: ["night/crow + 100%é.wav"],
    }
    assert sorted(key for keys in found.values() for key in keys) == world.differences()


def test_what_is_newer_than_an_inventory_is_no_difference(world: World, tmp_path: Path) -> None:
    """What was indexed or rejected since it was written is neither lost nor outdated."""
    place = _write(world, tmp_path / "inventory", 1e9 - DAY_S)
    world.put("since.wav", "owl.wav", "silent.wav")
    world.index_as_seen("since.wav", "owl.wav")  # in the world's time
    world.reject("silent.wav")  # by the clock
    assert _findings(world, _opened(world, place)) == {
        Finding.AGREED: ["night/crow + 100%é.wav", "owl.wav", "since.wav"]
    }
    world.delete("since.wav")  # which it cannot know: an event tells it, or the next comparison
    assert Finding.ORPHANED not in _findings(world, _opened(world, place))
    later = _write(world, tmp_path / "later", time.time() + DAY_S)
    assert _findings(world, _opened(world, later))[Finding.ORPHANED] == ["since.wav"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sourceBucket": "another"}, "lists another"),
        ({"fileFormat": "Avro"}, "Avro is not read"),
        ({"fileSchema": "Bucket, Key, Size"}, "lacks LastModifiedDate, ETag"),
        ({"files": [{"key": "0.csv.gz"}]}, "no inventory's manifest"),
        ({"creationTimestamp": "yesterday"}, "no inventory's manifest"),
    ],
)
def test_what_is_no_inventory_of_the_bucket_is_told(
    world: World, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """Before anything is compared, with what to change."""
    place = _write(world, tmp_path / "inventory", 1e9, **changes)
    with pytest.raises(ConfigurationError, match=said):
        _opened(world, place)
    with pytest.raises(ConfigurationError, match="names no manifest"):
        _opened(world, place + "x")


def _damages(folder: Path) -> Iterator[None]:
    file = folder / "0.csv.gz"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    yield
    file.unlink()
    yield


def test_an_inventory_that_is_not_whole_finds_nothing(world: World, tmp_path: Path) -> None:
    """A file that is missing or another than was written ends the comparison."""
    place = _write(world, tmp_path / "inventory", 1e9)
    for _ in _damages(tmp_path / "inventory"):
        with pytest.raises(Unavailable, match=r"0\.csv\.gz"):
            _findings(world, _opened(world, place))


@pytest.mark.parametrize(
    ("format_", "schema"),
    [("CSV", SCHEMA + ", StorageClass"), ("Parquet", SCHEMAS["ORC"]), ("ORC", SCHEMAS["ORC"])],
)
def test_rows_that_are_none_are_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str, schema: str
) -> None:
    """Also where the file is what its manifest says."""
    if format_ != "CSV":
        pytest.importorskip("pyarrow")
        monkeypatch.setitem(WRITERS, format_, _csv)
    place = _write(world, tmp_path / "inventory", 1e9, format_=format_, fileSchema=schema)
    with pytest.raises(Unavailable, match="cannot be read"):
        _findings(world, _opened(world, place))


def test_without_pyarrow_it_is_said_what_to_install(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is read; inventories as CSV take nothing."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    changes = {"fileFormat": "Parquet", "fileSchema": SCHEMAS["Parquet"]}
    place = _write(world, tmp_path / "inventory", 1e9, **changes)
    with pytest.raises(ConfigurationError, match=r"audiofuse\[inventory\]"):
        _opened(world, place)
    assert _opened(world, _write(world, tmp_path / "inventory", 1e9)).objects


def test_of_several_buckets_the_prefix_says_whose_inventory_it_is(
    world: World, tmp_path: Path
) -> None:
    """Its objects get their names among all, below the part of the bucket that is meant."""
    mounts = [{"name": "field", "address": str(world.root)}, {"name": "gone", "address": None}]
    settings = Settings(bucket="", buckets=SecretStr(json.dumps(mounts)))
    place = _write(world, tmp_path / "inventory", 1e9)
    there = {each.key for each in world.store.list()}
    listing = open_inventory(settings, place, "field/")
    assert {each.key for each in listing.objects} == {f"field/{key}" for key in there}
    night = open_inventory(settings, place, "field/night/").objects
    assert {each.key for each in night} == {f"field/{k}" for k in there if k.startswith("night/")}
    for prefix in ("", "fiel", "field", "other/", "gone/"):
        with pytest.raises(ConfigurationError, match=r"--prefix.* there are field/$"):
            open_inventory(settings, place, prefix)


def test_an_inventory_is_read_from_s3(world: World, tmp_path: Path, aws_settings: Settings) -> None:
    """From another bucket than the one that it lists, with the same credentials."""
    reports = open_store(aws_settings).bucket
    folder = tmp_path / "inventory"
    _write(world, folder, 1e9 + DAY_S)
    manifest = json.loads((folder / "manifest.json").read_text())
    client = s3_client(aws_settings)
    for file in manifest["files"]:
        name, file["key"] = file["key"], f"sounds/daily/data/{file['key']}"
        client.put_object(Bucket=reports, Key=file["key"], Body=(folder / name).read_bytes())
    client.put_object(Bucket=reports, Key="m/manifest.json", Body=json.dumps(manifest).encode())
    settings = aws_settings.model_copy(update={"bucket": str(world.root)})
    listing = open_inventory(settings, f"s3://{reports}/m/manifest.json")
    assert isinstance(world.store, FolderStore)
    assert {each.key for each in listing.objects} == {each.key for each in world.store.list()}
