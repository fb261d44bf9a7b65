"""Uploads over HTTP: who may, under which names, over what, and how much."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from audiofuse.core.items import MAX_SIDECAR_BYTES
from audiofuse.core.storage.refusals import Refused
from audiofuse.workers.service.uploads import routes
from audiofuse.workers.service.uploads.places import FolderPlace

Bearer = Callable[[str], dict[str, str]]
Problem = Callable[[httpx.Response, int, str], str]
Taking = Callable[..., TestClient]
ALL, WRITER, READER = "all-but-upload-012345", "may-upload-0123456789", "may-search-0123456789"
KEYS = SecretStr(f"ann:{ALL},bob:{WRITER}:search+upload,kiosk:{READER}:search+audio+repair")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return an empty bucket folder."""
    (tmp_path / "sounds").mkdir()
    return tmp_path / "sounds"


@pytest.fixture
def taking(open_to: Taking, root: Path) -> Taking:
    """Return what gives a client of a service over that folder which takes uploads."""

    def client(**settings: Any) -> TestClient:
        opened = open_to(**{"bucket": str(root), "uploads": True} | settings)
        opened.base_url = "http://127.0.0.1:7700"  # type: ignore[assignment]  # it is made one
        return opened

    return client


def _files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_sound_and_its_words_are_put_into_the_bucket(taking: Taking, root: Path) -> None:
    """Byte for byte, in folders that are made for it; what is told is what lies there."""
    client, words = taking(), b'{"labels": ["Rain"]}'
    assert client.put("/v1/audio/field/new/rain.wav.json", content=words).status_code == 201
    answer = client.put("/v1/audio/field/new/rain.wav", content=b"RIFF" * 100_000)
    assert answer.status_code == 201
    written = root / "field/new/rain.wav"
    assert written.read_bytes() == b"RIFF" * 100_000
    stat = written.stat()
    etag = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
    assert answer.json() == {"key": "field/new/rain.wav", "etag": etag, "size": 400_000}
    assert _files(root) == ["field/new/rain.wav", "field/new/rain.wav.json"]


def test_nothing_is_overwritten_that_was_not_meant(
    taking: Taking, root: Path, problem: Problem
) -> None:
    """Only with its ETag, or if it is said outright; else it stays as it was."""
    client = taking()
    (root / "a.wav").write_bytes(b"old")

    def put(**headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.put("/v1/audio/a.wav", content=b"new", headers=named)

    assert "If-Match" in problem(put(), 409, "exists")
    problem(put(If_Match='"another"'), 412, "changed")
    assert (root / "a.wav").read_bytes() == b"old"
    answer = put(If_Match="*")
    assert answer.status_code == 200
    assert (root / "a.wav").read_bytes() == b"new"
    assert put(If_Match=f'"{answer.json()["etag"]}"').status_code == 200
    gone = client.put("/v1/audio/b.wav", content=b"new", headers={"If-Match": "*"})
    problem(gone, 412, "changed")
    assert _files(root) == ["a.wav"]


@pytest.mark.parametrize(
    "key",
    [
        "%2e%2e/out.wav", "a/%2e%2e/%2e%2e/out.wav", "/out.wav", "a//b.wav", ".hidden.wav",
        "a/.git/b.wav", "notes.txt", "run.sh", "a.wav/", "b.wav.part", "%00.wav", "a%07b.wav",
        "x" * 1030 + ".wav", "link/out.wav", "y" * 300 + ".wav",
    ],
)  # fmt: skip
def test_only_sounds_and_sidecars_inside_the_bucket_are_written(
    taking: Taking, root: Path, problem: Problem, key: str
) -> None:
    """No key leads out, also by a link, is hidden, or names what no listing shows."""
    outside = root.parent / "outside"
    outside.mkdir()
    (root / "link").symlink_to(outside)
    problem(taking().put(f"/v1/audio/{key}", content=b"x"), 422, "bad-key")
    assert not _files(root.parent)


def test_what_is_no_sidecar_or_empty_is_refused(
    taking: Taking, root: Path, problem: Problem
) -> None:
    """At once, while who sends it can still repair it."""
    client = taking()
    problem(client.put("/v1/audio/a.json", content=b"{not json"), 422, "bad-sidecar")
    large = json.dumps({"title": "x" * MAX_SIDECAR_BYTES})
    problem(client.put("/v1/audio/a.json", content=large), 413, "too-large")
    problem(client.put("/v1/audio/a.wav", content=b""), 422, "empty")
    assert not _files(root)


def test_what_is_too_large_is_not_kept(taking: Taking, root: Path, problem: Problem) -> None:
    """Whatever its header says, a sound ends at the size that the deployment takes."""
    client = taking(max_object_bytes=1000)
    problem(client.put("/v1/audio/a.wav", content=b"x" * 1001), 413, "too-large")
    chunks = (b"x" * 100 for _ in range(100))
    problem(client.put("/v1/audio/a.wav", content=chunks), 413, "too-large")
    assert client.put("/v1/audio/a.wav", content=b"x" * 1000).status_code == 201
    assert client.get("/v1/uploads").json() == {"open": True, "most_bytes": 1000}
    assert _files(root) == ["a.wav"]


def test_only_the_scope_upload_writes(
    taking: Taking, root: Path, bearer: Bearer, problem: Problem
) -> None:
    """A key has it only if it says so; a signed link to a sound is none."""
    client = taking(api_keys=KEYS)
    for key in (ALL, READER):
        answer = client.put("/v1/audio/a.wav", content=b"x", headers=bearer(key))
        assert "upload" in problem(answer, 403, "not-allowed")
        assert not client.get("/v1/uploads", headers=bearer(key)).json()["open"]
    link = {"expires": "9999999999", "signature": "x"}
    problem(client.put("/v1/audio/a.wav", content=b"x", params=link), 401, "no-key")
    assert not _files(root)
    assert client.put("/v1/audio/a.wav", content=b"x", headers=bearer(WRITER)).status_code == 201


def test_nothing_is_taken_unless_the_owner_wants_it(
    taking: Taking, root: Path, problem: Problem
) -> None:
    """Switched off, as it is by itself, the service says what would switch it on."""
    client = taking(uploads=False)
    answer = client.put("/v1/audio/a.wav", content=b"x")
    assert "AUDIOFUSE_UPLOADS=true" in problem(answer, 404, "uploads-off")
    assert client.get("/v1/uploads").json() == {"open": False, "most_bytes": 0}
    assert not _files(root)


def test_a_page_of_others_uploads_nothing_through_a_browser(
    taking: Taking, root: Path, problem: Problem
) -> None:
    """Without keys, neither under a name of theirs that leads here nor from an origin of theirs."""
    client = taking(cors_origins="https://friend.example")
    named = {"Host": "evil.example:7700"}
    problem(client.put("/v1/audio/a.wav", content=b"x", headers=named), 403, "not-allowed")
    asked = {"Origin": "https://friend.example", "Access-Control-Request-Method": "PUT"}
    assert client.options("/v1/audio/a.wav", headers=asked).status_code == 400
    assert not _files(root)


def test_too_many_at_once_are_told_to_come_again(
    taking: Taking, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that uploads take neither all of the disk nor all threads."""
    monkeypatch.setattr(routes, "AT_ONCE", 0)
    problem(taking().put("/v1/audio/a.wav", content=b"x"), 503, "busy")


def test_a_storage_that_lets_nobody_write_is_told_apart(
    taking: Taking, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no outage: its owner has to give a right."""

    def refuse(*_: object) -> None:
        raise Refused("put_object s3://sounds/a.wav", "AccessDenied")

    monkeypatch.setattr(FolderPlace, "put", refuse)
    detail = problem(taking().put("/v1/audio/a.wav", content=b"x"), 503, "not-writable")
    assert "s3://" not in detail
