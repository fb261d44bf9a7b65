"""Links by which hits are heard: whom they let in, and for how long."""

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient

from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.store import open_store

Problem = Callable[[httpx.Response, int, str], str]
OpenTo = Callable[..., TestClient]


def test_sounds_of_a_folder_are_heard_by_signed_links(
    client: TestClient, bucket: Path, problem: Problem
) -> None:
    """The link of a hit gives the file, whole or in part; nothing else of the folder is given."""
    hit = client.get("/v1/search", params={"q": "gong", "keyword": "gong"}).json()["hits"][0]
    content = (bucket / hit["key"]).read_bytes()
    whole = client.get(hit["audio_url"])
    assert whole.content == content
    part = client.get(hit["audio_url"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    for other in ("music/piano.wav", "secret.txt", "../bundles", "music/../secret.txt"):
        forged = hit["audio_url"].replace("music/gong.ogg", other)
        assert client.get(forged).status_code in {403, 404}
    problem(client.get(hit["audio_url"] + "0"), 403, "expired")


def test_a_link_expires(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, problem: Problem
) -> None:
    """After its hour a link is refused, and says to search again."""
    url = client.get("/v1/search", params={"q": "gong"}).json()["hits"][0]["audio_url"]
    now = time.time()
    monkeypatch.setattr("audiofuse.workers.service.audio.time.time", lambda: now + 3599)
    assert client.get(url).status_code == 200
    monkeypatch.setattr("audiofuse.workers.service.audio.time.time", lambda: now + 3601)
    assert "search again" in problem(client.get(url), 403, "expired")


def test_a_deleted_sound_is_not_found(client: TestClient, bucket: Path, problem: Problem) -> None:
    """A link outlives its file for a while, and says so."""
    url = client.get("/v1/search", params={"q": "a", "prefix": "animals/"}).json()["hits"][0]
    (bucket / "animals/owl.wav").rename(bucket / "animals/moved")
    try:
        assert "deleted" in problem(client.get(url["audio_url"]), 404, "not-found")
    finally:
        (bucket / "animals/moved").rename(bucket / "animals/owl.wav")


def test_sounds_of_s3_are_heard_by_presigned_links(aws_settings: Settings, open_to: OpenTo) -> None:
    """The link leads to the bucket itself, and names when it ends; the page may load it."""
    name = aws_settings.bucket.removeprefix("s3://")
    s3_client(aws_settings).put_object(Bucket=name, Key="a b/ü.wav", Body=b"a sound")
    url = open_store(aws_settings).link("a b/ü.wav", 60)  # type: ignore[attr-defined]
    assert httpx.get(url).content == b"a sound"
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["60"]
    public = {"s3_public_url": "https://sounds.example"}
    client = open_to(**aws_settings.model_dump() | public)
    policy = client.get("/healthz").headers["content-security-policy"]
    assert "media-src 'self' blob: https://sounds.example;" in policy
    hits = client.get("/v1/search", params={"q": "a gong"}).json()["hits"]
    assert {hit["audio_url"] for hit in hits} == {None}  # they are of another bucket
