"""How hits are heard: by links, whom these let in and for how long; and in parts."""

import io
import shutil
import time
import wave
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from made_sounds import encode_as, noise, write_wav

from audiofuse.core.audio.excerpt import NotCut, excerpt
from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.errors import ObjectChanged
from audiofuse.core.items import point_id
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.store import FolderStore, open_store

Problem = Callable[[httpx.Response, int, str], str]
OpenTo = Callable[..., TestClient]
KEYS = {"Authorization": "Bearer a-long-key-of-ann"}


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


def _path(bucket: Path, key: str = "music/piano.wav") -> str:
    return f"/v1/items/{point_id(FolderStore(bucket).bucket, key)}/excerpt"


@pytest.fixture
def hearing(open_to: OpenTo, bucket: Path) -> TestClient:
    """Return a client of a service that has the bucket."""
    return open_to(bucket=str(bucket))


def _read(content: bytes) -> tuple[wave._wave_params, np.ndarray]:
    with wave.open(io.BytesIO(content)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        return file.getparams(), samples.reshape(-1, file.getnchannels())


def test_an_excerpt_is_that_part_of_the_sound(hearing: TestClient, bucket: Path) -> None:
    """Of a WAV file it is the very samples between the two times, at the file's own rate."""
    answer = hearing.get(_path(bucket), params={"start_s": 1.25, "end_s": 2.5})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/wav")
    whole, all_samples = _read((bucket / "music/piano.wav").read_bytes())
    part, samples = _read(answer.content)
    assert part.framerate == whole.framerate
    first, last = round(1.25 * whole.framerate), round(2.5 * whole.framerate)
    np.testing.assert_array_equal(samples, all_samples[first:last])


@pytest.mark.parametrize("key", ["music/gong.ogg", "music/cowbell.flac", "animals/owl.wav"])
def test_every_format_can_be_cut(hearing: TestClient, bucket: Path, key: str) -> None:
    """What begins later is as long as was asked for, or as there is."""
    answer = hearing.get(_path(bucket, key), params={"start_s": 0.1, "end_s": 0.3})
    part, samples = _read(answer.content)
    assert samples.shape[0] == pytest.approx(part.framerate / 5, abs=2)
    assert np.abs(samples).max() > 0


@pytest.mark.parametrize(("start_s", "end_s"), [(2, 2), (3, 2), (0, 121), (4000, 4001), (-1, 1)])
def test_what_is_no_part_is_refused(
    hearing: TestClient, bucket: Path, start_s: float, end_s: float
) -> None:
    """Empty, backwards, too long or beyond the end: told as the asker's fault."""
    answer = hearing.get(_path(bucket), params={"start_s": start_s, "end_s": end_s})
    assert answer.status_code == 422


def test_only_who_may_hear_gets_one(open_to: OpenTo, bucket: Path) -> None:
    """A key that may only search is refused, as it is at the whole sound."""
    hearing = open_to(bucket=str(bucket), api_keys="ann:a-long-key-of-ann:search")
    answer = hearing.get(_path(bucket), params={"start_s": 0, "end_s": 1}, headers=KEYS)
    assert answer.status_code == 403


def test_a_sound_that_was_replaced_is_not_cut(
    hearing: TestClient, bucket: Path, tmp_path: Path
) -> None:
    """Times belong to the sound that was indexed: another one under its key is not passed off."""
    kept = shutil.copy2(bucket / "animals/owl.wav", tmp_path / "owl.wav")
    try:
        shutil.copy(bucket / "music/piano.wav", bucket / "animals/owl.wav")
        url = _path(bucket, "animals/owl.wav")
        assert hearing.get(url, params={"start_s": 0, "end_s": 1}).status_code == 404
    finally:
        shutil.copy2(kept, bucket / "animals/owl.wav")


def test_a_sound_that_is_replaced_while_it_is_cut_is_told(
    hearing: TestClient, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes between two of its parts is no half of each, but gone."""

    def replaced(*_: object) -> bytes:
        raise ObjectChanged("animals/owl.wav was replaced")

    monkeypatch.setattr(FolderStore, "part", replaced)
    answer = hearing.get(_path(bucket, "animals/owl.wav"), params={"start_s": 0, "end_s": 1})
    assert (answer.status_code, "search again" in answer.text) == (404, True)


@pytest.mark.parametrize(("kind", "most"), [("wav", 0.2), ("flac", 0.5), ("mp3", 0.2)])
def test_what_lies_before_and_after_is_not_read(tmp_path: Path, kind: str, most: float) -> None:
    """Of a long sound a small part of its bytes is fetched, and it is the very same sound."""
    path, samples = tmp_path / f"long.{kind}", noise(60)
    samples *= np.linspace(0, 1, samples.size, dtype=np.float32)  # loudness tells the time
    if kind == "wav":
        write_wav(path, samples)
    else:
        encode_as(path, samples, {"flac": "flac", "mp3": "libmp3lame"}[kind], 320_000)
    content, read = path.read_bytes(), []

    def part(first: int, count: int) -> bytes:
        read.append(count)
        return content[first : first + count]

    _, heard = _read(excerpt(part, len(content), 50.5, 52))
    assert sum(read) < most * len(content)
    expected = samples[int(50.5 * SAMPLE_RATE) : 52 * SAMPLE_RATE] * 32767
    assert heard.std() == pytest.approx(expected.std(), rel=0.05)
    if kind != "mp3":
        np.testing.assert_allclose(heard[:, 0], expected, atol=2)


def test_what_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that cuts is ended when patience is, and the file is blamed, not the service."""
    monkeypatch.setattr("audiofuse.core.audio.excerpt.PATIENCE_S", 0.0)
    content = write_wav(tmp_path / "a.wav", noise(2)).read_bytes()
    with pytest.raises(NotCut, match="takes too long"):
        excerpt(lambda first, count: content[first : first + count], len(content), 0, 1)


def test_an_item_that_is_not_there_is_told(hearing: TestClient) -> None:
    """It is 404, also where the item is in no bucket of this service."""
    nobody = "/v1/items/6ba7b810-9dad-51d1-80b4-00c04fd430c8/excerpt?start_s=0&end_s=1"
    assert hearing.get(nobody).status_code == 404
