"""Where a bucket is: what boto3 would find, with boto3 and without it."""

from pathlib import Path
from typing import Any

import pytest
import trustme

from audiofuse.core.settings import Settings
from audiofuse.core.storage import boto
from audiofuse.core.storage.addresses import Address, plain_address
from audiofuse.core.storage.boto import address_of
from audiofuse.core.storage.connections import Refuses

KEYS: dict[str, Any] = {"s3_access_key_id": "a", "s3_secret_access_key": "b"}


@pytest.fixture(autouse=True)
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Keep what boto3 is told on this machine out of it; return what tells it something."""
    for name in ("AWS_CONFIG_FILE", "AWS_PROFILE", "AWS_CA_BUNDLE", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    boto._session.cache_clear()
    return monkeypatch


@pytest.fixture(autouse=True)
def _a_session_of_its_own() -> Any:
    yield
    boto._session.cache_clear()


def _settings(endpoint: str | None = None, **more: Any) -> Settings:
    return Settings(s3_endpoint_url=endpoint, **(KEYS | more))


def _found(settings: Settings, bucket: str = "sounds") -> Address:
    return address_of(settings, bucket)


@pytest.mark.parametrize(
    ("bucket", "settings", "url"),
    [
        ("sounds", {}, "https://sounds.s3.amazonaws.com"),
        ("a.b", {}, "https://s3.amazonaws.com/a.b"),  # whose certificate has one level
        ("sounds", {"s3_region": "eu-west-1"}, "https://sounds.s3.eu-west-1.amazonaws.com"),
        ("sounds", {"s3_region": "cn-north-1"}, "https://sounds.s3.cn-north-1.amazonaws.com.cn"),
        ("sounds", {"s3_endpoint_url": "http://[::1]:9000/x/"}, "http://[::1]:9000/x/sounds"),
    ],
)
def test_a_bucket_is_where_boto3_finds_it(bucket: str, settings: Any, url: str) -> None:
    """Hosts of buckets, regions, partitions and paths of endpoints are boto3's own."""
    address = _found(Settings(**(KEYS | settings)), bucket)
    assert address.url == url
    assert address.region == settings.get("s3_region", "us-east-1")
    assert address.credentials() == ("a", "b", None)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:8333", "http://s3.local", "http://S3.x:1/"])
def test_what_the_settings_say_is_what_boto3_finds(endpoint: str, tmp_path: Path) -> None:
    """An endpoint and keys, with nothing else said to boto3, make the same address without it."""
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for url in (endpoint, endpoint.replace("http:", "https:")):
        settings = _settings(url, ca_file=tmp_path / "ca.pem", s3_region="eu-west-1")
        plain, found = plain_address(settings, "my.sounds"), _found(settings, "my.sounds")
        assert plain
        assert (plain.url, plain.region, plain.ca_file) == (found.url, found.region, found.ca_file)
        assert plain.credentials() == found.credentials()
        assert plain.connections()._address == found.connections()._address
        assert plain.signer._host == found.signer._host


@pytest.mark.parametrize(
    ("settings", "bucket"),
    [
        (_settings(), "sounds"),
        (_settings("https://s3.local"), "sounds"),
        (_settings("http://s3.local", s3_access_key_id=None), "sounds"),
        (_settings("http://s3.local/path"), "sounds"),
        (_settings("http://user@s3.local"), "sounds"),
        (_settings("http://s3.local", s3_region="no region"), "sounds"),
        (_settings("http://s3.local"), "Sounds_"),
    ],
)
def test_what_is_out_of_the_ordinary_is_for_boto3(settings: Settings, bucket: str) -> None:
    """AWS, a missing key, and names that need a judgement are never guessed at."""
    assert plain_address(settings, bucket) is None


def test_whatever_is_said_to_boto3_is_heard(configure: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable or a file of AWS's may change the address, so boto3 is asked for it."""
    settings = _settings("http://s3.local")
    assert plain_address(settings, "sounds")
    with configure.context() as patch:
        patch.setenv("AWS_PROFILE", "x")
        assert plain_address(settings, "sounds") is None
    (tmp_path / ".aws").mkdir()
    assert plain_address(settings, "sounds") is None
    (tmp_path / ".aws" / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    assert _found(settings).url == "http://sounds.s3.local"


def test_a_proxy_is_left_to_boto3(configure: pytest.MonkeyPatch) -> None:
    """Behind a proxy boto3 asks, as it did; who is reached without one is not concerned."""
    configure.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    configure.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(Refuses, match="proxy"):
        _found(_settings("http://s3.local")).connections()
    assert _found(_settings("http://127.0.0.1:8333")).connections()


def test_authorities_are_those_of_boto3(configure: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings' file, else AWS's variable, else what came with boto3; a bad one is refused."""
    (tmp_path / "bundle.pem").write_text("no certificate")
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    assert _found(_settings()).connections()._tls
    configure.setenv("AWS_CA_BUNDLE", str(tmp_path / "bundle.pem"))
    boto._session.cache_clear()
    address = Address("https://s3.local/sounds", "x", tuple, boto._authorities(_settings()))  # type: ignore[arg-type]
    assert address.ca_file == tmp_path / "bundle.pem"
    with pytest.raises(Refuses, match=r"bundle\.pem"):
        address.connections()
    assert boto._authorities(_settings(ca_file=tmp_path / "ca.pem")) == tmp_path / "ca.pem"
