"""Several buckets as one: how they are set, and where each name leads."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from audiofuse.core.errors import ConfigurationError, Rejected, Unavailable
from audiofuse.core.query import Place
from audiofuse.core.settings import Settings
from audiofuse.core.storage.mounts import MountedStore, names_of, read_mounts
from audiofuse.core.storage.store import has_bucket, open_store, place_of, shown_bucket

SECRET = "a-secret-that-nobody-sees"


def _settings(*mounts: Any, **more: Any) -> Settings:
    return Settings(buckets=SecretStr(json.dumps(mounts)), **more)


@pytest.fixture
def store(tmp_path: Path) -> MountedStore:
    """Return two folders with some sounds, and a bucket that is given up."""
    for name in ("field/rain.wav", "field/deep/owl.wav", "studio/rain.wav", "studio/rain.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    mounts = [{"name": each, "address": str(tmp_path / each)} for each in ("field", "studio")]
    store = open_store(_settings(*mounts, {"name": "old", "address": None}))
    assert isinstance(store, MountedStore)
    return store


def test_names_lead_to_their_bucket(store: MountedStore) -> None:
    """The first part of a name is the bucket's; what is read is its object of the rest."""
    for name in ("field/rain.wav", "studio/rain.wav"):
        info = store.head(name)
        assert info
        assert info.key == name
        assert store.read(info) == store.part(info, 0, len(name)) == name.encode()
        with store.open(info) as path:
            assert path.read_bytes() == name.encode()
    assert store.head("field/studio/rain.wav") is None
    assert store.head("field/../studio/rain.wav") is None
    assert store.head("old/rain.wav") is None
    assert store.place("field/deep/owl.wav") == ("field", "deep/owl.wav")


@pytest.mark.parametrize("name", ["other/rain.wav", "rain.wav", ""])
def test_of_a_name_in_no_bucket_nothing_is_known(store: MountedStore, name: str) -> None:
    """A process that was not told of a bucket takes its objects for unknown, and not for gone."""
    with pytest.raises(Rejected, match="no bucket is called"):
        store.head(name)


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("", ["field/deep/owl.wav", "field/rain.wav", "studio/rain.json", "studio/rain.wav"]),
        ("studio/", ["studio/rain.json", "studio/rain.wav"]),
        ("field/de", ["field/deep/owl.wav"]),
        ("studio/rain.", ["studio/rain.json", "studio/rain.wav"]),
        ("other/", []),
    ],
)
def test_listings_have_names(store: MountedStore, prefix: str, names: list[str]) -> None:
    """Of all buckets, of one, or of a part of one; a sidecar is looked for beside its sound."""
    assert sorted(info.key for info in store.list(prefix)) == names


def test_one_that_is_away_is_no_empty_one(store: MountedStore, tmp_path: Path) -> None:
    """Its objects and the list of all cannot be told; the others can."""
    (tmp_path / "studio").rename(tmp_path / "elsewhere")
    for ask in (lambda: store.head("studio/rain.wav"), lambda: list(store.list())):
        with pytest.raises(Unavailable, match="gone"):
            ask()
    assert store.head("field/rain.wav")
    assert len(list(store.list("field/"))) == 2


def test_a_folder_that_is_away_at_the_start_is_there_later(tmp_path: Path) -> None:
    """It keeps no process from serving the others."""
    store = open_store(_settings({"name": "late", "address": str(tmp_path / "late")}))
    with pytest.raises(Unavailable, match="gone"):
        store.head("late/rain.wav")
    (tmp_path / "late").mkdir()
    (tmp_path / "late/rain.wav").touch()
    assert store.head("late/rain.wav")


def test_items_of_the_buckets_are_meant(store: MountedStore) -> None:
    """Neither those of others, nor those that an only bucket had without its name."""
    tops = tuple(Place(f"{each}/", each) for each in ("field", "studio", "old"))
    assert store.where("x").within == tops
    assert store.parts() == ["field/", "studio/", "old/"]
    assert store.parts("field/deep") == ["field/deep"]


def test_each_bucket_may_have_its_own_access() -> None:
    """What it does not say is as for all; a public address of another endpoint is not its."""
    (own, plain) = read_mounts(
        _settings(
            {
                "name": "field", "address": "s3://b/2026/", "endpoint_url": "http://own",
                "access_key_id": "me", "secret_access_key": SECRET, "region": "r",
            },
            {"name": "plain", "address": "s3://c"},
        )
    )  # fmt: skip
    of_all = _settings(s3_endpoint_url="http://all", s3_public_url="http://seen")
    mine, others = own.settings(of_all), plain.settings(of_all)
    assert (mine.bucket, mine.s3_endpoint_url, mine.s3_region) == ("s3://b", "http://own", "r")
    assert mine.s3_secret_access_key == SecretStr(SECRET)
    assert mine.s3_public_url == "http://own"
    assert (others.bucket, others.s3_endpoint_url) == ("s3://c", "http://all")
    assert others.s3_public_url == "http://seen"
    assert (own.prefix, plain.prefix) == ("2026/", "")
    assert SECRET not in repr(own)


@pytest.mark.parametrize(
    ("mounts", "said"),
    [
        ("{", "JSON"),
        ("[]", "JSON: "),
        ([{"name": "a/b", "address": "/x"}], "0.name"),
        ([{"name": "a"}], "0.address"),
        ([{"name": "a", "address": "/x", "secret": SECRET}], "0.secret"),
        ([{"name": "a", "address": "/x"}] * 2, "two buckets are called a"),
        ([{"name": "a", "address": "s3://"}], "a: address names no bucket"),
        ([{"name": "a", "address": "s3://b/2026"}], "a: address ends with no /"),
    ],
)
def test_a_wrong_setting_names_the_field_and_no_value(mounts: Any, said: str) -> None:
    """Secrets are in it, so that nothing of it is told."""
    text = mounts if isinstance(mounts, str) else json.dumps(mounts)
    with pytest.raises(ConfigurationError, match="AUDIOFUSE_BUCKETS: ") as error:
        read_mounts(Settings(buckets=SecretStr(text)))
    assert said in str(error.value)
    assert SECRET not in str(error.value)


def test_one_bucket_is_as_it_was(tmp_path: Path) -> None:
    """It has no name in front of its keys; and it excludes several."""
    settings = Settings(bucket=str(tmp_path))
    store = open_store(settings)
    assert place_of(settings, "a/b.wav") == store.place("a/b.wav") == (tmp_path.name, "a/b.wav")
    assert store.parts("a") == ["a"]
    several = _settings({"name": "a", "address": "/x"})
    assert place_of(several, "a/b.wav") == ("a", "b.wav")
    assert (shown_bucket(settings), shown_bucket(several)) == (str(tmp_path), "a")
    assert [has_bucket(each) for each in (settings, several, Settings())] == [True, True, False]
    with pytest.raises(ConfigurationError, match="exclude"):
        open_store(several.model_copy(update={"bucket": "/x"}))


def test_events_are_of_the_buckets_that_have_the_key() -> None:
    """By the storage's own name; outside of a prefix, and of a folder, there is none."""
    names = names_of(
        read_mounts(
            _settings(
                {"name": "field", "address": "s3://b/2026/"},
                {"name": "all", "address": "s3://b"},
                {"name": "studio", "address": "/b"},
            )
        )
    )
    assert names("b", "2026/rain.wav") == ["field/2026/rain.wav", "all/2026/rain.wav"]
    assert names("b", "2025/rain.wav") == ["all/2025/rain.wav"]
    assert names("field", "2026/rain.wav") == []
