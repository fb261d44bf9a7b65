"""Credentials come from wherever boto3 finds them, and are new before the old ones expire."""

import re
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from servers import Say, Wire

from audiofuse.core.errors import Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage import boto
from audiofuse.core.storage.store import open_store

MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
FOUND = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"  # the bucket is
KEY = re.compile(rb"(?i)authorization: .*Credential=([^/]+)/")
TOKEN = re.compile(rb"(?i)x-amz-security-token: (\S+)")
ROLE = "arn:aws:iam::123456789012:role/reader"
Configure = Callable[..., None]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Configure]:
    """Return what writes the files of AWS's tools, and sets variables; nothing else is told."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)

    def write(config: str = "", credentials: str = "", **variables: str) -> None:
        for kind, text in (("CONFIG", config), ("SHARED_CREDENTIALS", credentials)):
            path = tmp_path / kind
            path.write_text(text)
            monkeypatch.setenv(f"AWS_{kind}_FILE", str(path))
        for name, value in variables.items():
            monkeypatch.setenv(f"AWS_{name}", value)

    boto._session.cache_clear()
    yield write
    boto._session.cache_clear()


@pytest.fixture
def server(wire: Callable[[Say], Wire]) -> Wire:
    """Return a bucket that is empty, and shows by whose key it is asked."""
    return wire(lambda request: MISSING if b"rain.wav" in request else FOUND)


def _look(server: Wire, times: int = 1) -> list[tuple[str, str]]:
    """Look for an object so often; return the keys and tokens by which that was asked."""
    store = open_store(Settings(bucket="s3://sounds", s3_endpoint_url=server.url))
    server.requests.clear()
    for _ in range(times):
        assert store.head("rain.wav") is None
    asked = [each for each in server.requests if b"rain.wav" in each]
    assert len(asked) == times
    assert not any(b"Boto3" in each for each in asked)  # all of them without it
    return [tuple((p.findall(each) or [b""])[0].decode() for p in (KEY, TOKEN)) for each in asked]  # type: ignore[misc]


def test_keys_in_variables(server: Wire, configure: Configure) -> None:
    """Keys and the token of a session, as a CI job has them."""
    configure(ACCESS_KEY_ID="AKIA1", SECRET_ACCESS_KEY="x", SESSION_TOKEN="t")
    assert _look(server) == [("AKIA1", "t")]


def test_a_profile_in_a_file(server: Wire, configure: Configure) -> None:
    """The profile that is named, and not the default one."""
    profiles = (
        "[default]\naws_access_key_id = AKIA1\naws_secret_access_key = x\n"
        "[sounds]\naws_access_key_id = AKIA2\naws_secret_access_key = y\n"
    )
    configure(credentials=profiles, PROFILE="sounds")
    assert _look(server) == [("AKIA2", "")]


def test_a_role_that_is_assumed(server: Wire, configure: Configure, aws_url: str) -> None:
    """A profile with a role: its session's keys sign, and its token is sent."""
    configure(
        f"[profile sounds]\nrole_arn = {ROLE}\nsource_profile = base\nregion = us-east-1\n",
        "[base]\naws_access_key_id = AKIA1\naws_secret_access_key = x\n",
        PROFILE="sounds",
        ENDPOINT_URL_STS=aws_url,
    )
    ((key, token), again) = _look(server, 2)
    assert key.startswith("ASIA")
    assert token
    assert again == (key, token)  # one session for both


def test_a_web_identity(server: Wire, configure: Configure, aws_url: str, tmp_path: Path) -> None:
    """A service account's token, as Kubernetes mounts it, opens a session of its role."""
    (tmp_path / "token").write_text("a.b.c")
    configure(
        ROLE_ARN=ROLE,
        WEB_IDENTITY_TOKEN_FILE=str(tmp_path / "token"),
        ENDPOINT_URL_STS=aws_url,
        DEFAULT_REGION="us-east-1",
    )
    ((key, token),) = _look(server)
    assert key.startswith("ASIA")
    assert token


def _process(tmp_path: Path, expires: datetime) -> str:
    """Return a profile whose keys a program makes, each time others."""
    keys = {"Version": 1, "SecretAccessKey": "x", "SessionToken": "t"}
    keys["Expiration"] = expires.isoformat()
    program = tmp_path / "program.py"
    program.write_text(
        "import json, pathlib\n"
        f"count = pathlib.Path({str(tmp_path / 'count')!r})\n"
        "number = int(count.read_text()) + 1 if count.exists() else 1\n"
        "count.write_text(str(number))\n"
        f"print(json.dumps({keys!r} | {{'AccessKeyId': f'AKIA{{number}}'}}))\n"
    )
    return f"[default]\ncredential_process = {sys.executable} -S -E {program}\n"


def test_keys_that_expire_are_replaced(server: Wire, configure: Configure, tmp_path: Path) -> None:
    """Keys that end soon are fetched anew before a request; those that last are kept."""
    configure(_process(tmp_path, datetime.now(UTC) + timedelta(minutes=5)))
    keys = [key for key, _ in _look(server, 3)]
    assert len(set(keys)) == 3
    boto._session.cache_clear()
    configure(_process(tmp_path, datetime.now(UTC) + timedelta(hours=5)))
    assert len(set(_look(server, 3))) == 1


def test_without_credentials_nobody_is_asked(
    server: Wire, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where boto3 finds none, that is said."""
    monkeypatch.setenv("HOME", "/nowhere")
    configure()
    with pytest.raises(Unavailable, match="Unable to locate credentials"):
        _look(server)
    assert server.requests == []


def test_keys_that_cannot_be_replaced_mean_later(
    server: Wire, configure: Configure, tmp_path: Path
) -> None:
    """What makes keys may be away for a while: that is no fault of an object, and is told."""
    configure(_process(tmp_path, datetime.now(UTC) + timedelta(minutes=5)))
    store = open_store(Settings(bucket="s3://sounds", s3_endpoint_url=server.url))
    assert store.head("rain.wav") is None
    program = tmp_path / "program.py"
    program.rename(tmp_path / "elsewhere.py")
    with pytest.raises(Unavailable, match=r"program\.py"):
        store.head("rain.wav")
    (tmp_path / "elsewhere.py").rename(program)
    assert store.head("rain.wav") is None


def test_keys_in_the_settings_come_first(server: Wire, configure: Configure) -> None:
    """What the environment says of credentials is not asked."""
    configure(ACCESS_KEY_ID="AKIA1", SECRET_ACCESS_KEY="x", SESSION_TOKEN="t")
    open_store(server.settings).head("rain.wav")
    assert KEY.findall(server.requests[0]) == [b"a"]
    assert not TOKEN.findall(server.requests[0])
