"""A listing that was broken off is gone on with, by whoever compares next."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from audiofuse.core.errors import Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage import s3
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.s3 import S3Bucket
from audiofuse.core.storage.store import open_store
from audiofuse.workers.repair.listing import CLOCKS_MS, FOLDER, GOES_ON_S, Listing, listed

NAMES = [f"{letter} +%ü.wav" for letter in "abcdefghi"]
PAGE = 2  # objects of one request


class Broken(Exception):  # noqa: N818 - no error is meant
    """Whatever ends a process."""


@pytest.fixture
def settings(aws_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings of a bucket that takes five requests to list."""
    monkeypatch.setattr(s3, "PAGE", PAGE)
    bucket, client = open_store(aws_settings).bucket, s3_client(aws_settings)
    for name in NAMES:
        client.put_object(Bucket=bucket, Key=f"field/{name}", Body=b"")
    return aws_settings.model_copy(update={"home": tmp_path / "home"})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the keys behind which requests for a part of a listing begin, as they are made."""
    begins: list[str] = []
    page = S3Bucket.page

    def counted(
        bucket: S3Bucket, prefix: str, token: str | None, most: int, after: str = ""
    ) -> object:
        begins.append(after)
        return page(bucket, prefix, token, most, after)

    monkeypatch.setattr(S3Bucket, "page", counted)
    return begins


def _keys(
    settings: Settings, most: int = 1000, prefix: str = "field/"
) -> tuple[Listing, list[str]]:
    """List so many, and end well, or, if there are more, as a process that is killed does."""
    keys: list[str] = []
    with listed(settings, prefix) as listing:
        assert listing
        for info in listing.objects:
            if len(keys) == most:
                raise Broken
            keys.append(info.key)
    return listing, keys


def _files(settings: Settings) -> list[Path]:
    return list((settings.home / FOLDER).glob("*"))


def test_who_is_killed_does_not_list_all_anew(settings: Settings, asked: list[str]) -> None:
    """What was listed is known, however the file ends; what changed since is left alone."""
    began_ms = time.time() * 1000
    with pytest.raises(Broken):
        _keys(settings, most=5)
    (file,) = _files(settings)
    with file.open("ab") as damaged:
        damaged.write(b'["field/c')
    asked.clear()
    listing, keys = _keys(settings)
    assert keys == [f"field/{name}" for name in NAMES]
    assert asked == [f"field/{NAMES[5]}"] * 2  # three objects and so two requests are left
    assert abs(listing.as_of_ms + CLOCKS_MS - began_ms) < 60_000
    assert not _files(settings)
    assert _keys(settings)[0].as_of_ms == math.inf


def test_a_bucket_that_goes_away_is_listed_on_later(
    settings: Settings, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as it goes away: each time a part of it is done."""
    page = S3Bucket.page

    def away(bucket: S3Bucket, *arguments: Any) -> Any:
        if len(asked) % 3 == 2:
            asked.append("away")
            raise Unavailable("away")
        return page(bucket, *arguments)

    monkeypatch.setattr(S3Bucket, "page", away)
    for _ in range(2):
        with pytest.raises(Unavailable):
            _keys(settings)
    assert _keys(settings)[1] == [f"field/{name}" for name in NAMES]


def test_an_old_listing_counts_for_nothing(settings: Settings) -> None:
    """It goes, as do those that nobody will go on with."""
    with pytest.raises(Broken):
        _keys(settings, most=5)
    (file,) = _files(settings)
    rest = file.read_bytes().split(b"\n", 1)[1]
    file.write_bytes(b"%d\n" % ((time.time() - GOES_ON_S - 60) * 1000) + rest)
    other = file.with_name("other.jsonl")
    other.touch()
    os.utime(other, (0, 0))
    assert _keys(settings)[0].as_of_ms == math.inf
    assert not _files(settings)


def test_two_at_once_are_not_in_each_others_way(settings: Settings) -> None:
    """The second lists for itself and keeps nothing; another part of the bucket is another file."""
    with listed(settings, "field/") as first, listed(settings, "field/") as second:
        assert first
        assert second is None
        assert _keys(settings, prefix="field/a")[1] == [f"field/{NAMES[0]}"]


def test_of_several_buckets_one_on_s3_is_gone_on_with(settings: Settings, tmp_path: Path) -> None:
    """By its names among all; folders, and all at once, are listed as ever."""
    bucket = open_store(settings).bucket
    mounts = [
        {"name": "here", "address": str(tmp_path)},
        {"name": "far", "address": f"s3://{bucket}/field/"},
    ]
    several = settings.model_copy(update={"bucket": "", "buckets": SecretStr(json.dumps(mounts))})
    names = [f"far/field/{name}" for name in NAMES]
    with pytest.raises(Broken):
        _keys(several, most=5, prefix="far/")
    assert _keys(several, prefix="far/")[1] == names
    for prefix in ("", "here/", "fa"):
        with listed(several, prefix) as listing:
            assert listing is None
