"""An inventory that S3 wrote stands for the listing of a bucket, as far as it knows."""

import gzip
import hashlib
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pytest

from audiofuse.core.errors import ConfigurationError, Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.store import FolderStore, open_store
from audiofuse.workers.repair.comparison import compare
from audiofuse.workers.repair.findings import Finding
from audiofuse.workers.repair.inventory import MARGIN_S, Listing, open_inventory

World = Any  # see conftest.py
SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
DAY_S = 24 * 3600


def _write(world: World, folder: Path, at_s: float, *, parts: int = 2, **changes: Any) -> str:
    """Write an inventory of a world's bucket as S3 does, and return its manifest's path."""
    rows = [
        (world.store.bucket, quote_plus(each.key), "v1", "true", "false", each.size,
         datetime.fromtimestamp(each.modified_ms / 1000, UTC).isoformat(timespec="milliseconds"),
         each.etag)
        for each in world.store.list()
    ]  # fmt: skip
    rows += [
        (world.store.bucket, "owl.wav", "v0", "false", "false", 1, rows[0][6], "old"),
        (world.store.bucket, "deleted.wav", "v0", "true", "true", "", rows[0][6], ""),
    ]
    rows.reverse()  # in no order
    folder.mkdir(exist_ok=True)
    files = []
    for part in range(parts):
        lines = ("".join(f'"{value}",' for value in row)[:-1] for row in rows[part::parts])
        content = gzip.compress("".join(f"{line}\n" for line in lines).encode())
        (folder / f"{part}.csv.gz").write_bytes(content)
        checksum = hashlib.md5(content).hexdigest()
        files.append({"key": f"{part}.csv.gz", "size": len(content), "MD5checksum": checksum})
    manifest = {
        "sourceBucket": world.store.bucket, "destinationBucket": "arn:aws:s3:::reports",
        "version": "2016-11-30", "creationTimestamp": str(round(at_s * 1000)),
        "fileFormat": "CSV", "fileSchema": SCHEMA, "files": files,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    return str(folder / "manifest.json")


def _opened(world: World, place: str, prefix: str = "") -> Listing:
    return open_inventory(Settings(bucket=str(world.root)), place, prefix)


def _findings(world: World, listing: Listing) -> dict[Finding, list[str]]:
    with compare(
        world.store, world.index, world.generation, world.letters, listing=listing
    ) as comparison:
        return {each: keys for each in Finding if (keys := sorted(comparison.keys(each)))}


def test_an_inventory_lists_what_the_bucket_has(world: World, tmp_path: Path) -> None:
    """Every object as it is now, whatever its name; no older version, nothing that was deleted."""
    world.put("a b+c/ü%20.wav")
    listing = _opened(world, _write(world, tmp_path / "inventory", 1e9 + DAY_S))
    objects = sorted(listing.objects, key=lambda each: each.key)
    assert objects == sorted(world.store.list(), key=lambda each: each.key)
    assert listing.as_of_ms == (1e9 + DAY_S - MARGIN_S) * 1000
    night = _opened(world, str(tmp_path / "inventory/manifest.json"), "night/")
    assert {each.key for each in night.objects} == {each.key for each in world.store.list("night/")}


def test_what_an_inventory_knows_is_compared(world: World, tmp_path: Path) -> None:
    """The same differences are found as by listing."""
    world.put("new.wav", "owl.wav")
    world.delete("night/crow + 100%é.wav")
    place = _write(world, tmp_path / "inventory", 1e9 + DAY_S)
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
        ({"fileFormat": "Parquet"}, "Parquet is not read"),
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


def test_rows_that_are_none_are_told(world: World, tmp_path: Path) -> None:
    """Also where the file is what its manifest says."""
    place = _write(world, tmp_path / "inventory", 1e9, fileSchema=SCHEMA + ", StorageClass")
    with pytest.raises(Unavailable, match="cannot be read"):
        _findings(world, _opened(world, place))


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
