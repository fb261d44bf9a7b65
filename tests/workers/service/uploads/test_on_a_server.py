"""What leads to the bucket or reads it, against a server that speaks S3 and checks who asks."""

import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import pytest
from bundles import saved_bundle
from fastapi.testclient import TestClient
from local_encoder import LocalEncoder

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.index.index import Index, connect_embedded
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.store import open_store
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.service.app import create_app

SOUNDS = Path(__file__).parents[4] / "examples" / "sounds"
KEY, SIDECAR = "a b/gong + ü.ogg", "a b/gong + ü.json"
CONTENT, WORDS = (SOUNDS / "music/gong.ogg").read_bytes(), (SOUNDS / "music/gong.json").read_bytes()


@pytest.fixture(scope="module")
def served(
    s3_on: Callable[[str], Settings],
    tiny_encoder: Encoder,
    tmp_path_factory: pytest.TempPathFactory,
) -> TestClient:
    """Return a client of a service over a bucket of SeaweedFS with a sound and its sidecar."""
    settings = s3_on("seaweedfs").model_copy(update={"uploads": True})
    store, s3 = open_store(settings), s3_client(settings)
    for key, content in ((KEY, CONTENT), (SIDECAR, WORDS)):
        s3.put_object(Bucket=store.bucket, Key=key, Body=content)
    version = saved_bundle(tiny_encoder, tmp_path_factory.mktemp("bundles"), "tiny", "").name
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create(version, tiny_encoder)
    sides = BucketSide(store, Limits(60, 10**7)), IndexSide(index, generation)
    Syncer(*sides, LocalEncoder(tiny_encoder)).sync(KEY)
    searcher = Searcher(index, LoadedEncoders(lambda _: tiny_encoder, {version: tiny_encoder}))
    return TestClient(create_app(searcher, settings), base_url="http://127.0.0.1:7700")


@pytest.fixture
def hit(served: TestClient) -> dict[str, Any]:
    """Return the sound as it is found."""
    (found,) = served.get("/v1/search", params={"q": "a gong"}).json()["hits"]
    return dict(found)


def test_a_link_is_let_in_and_no_other(hit: dict[str, Any]) -> None:
    """It gives the sound without a key, whole or in part, as a player asks; changed, nothing."""
    url = hit["audio_url"]
    assert httpx.get(url).content == CONTENT
    part = httpx.get(url, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, CONTENT[10:20])
    assert httpx.get(url.replace("gong", "other")).status_code == 403


def test_sounds_are_taken_along(served: TestClient, hit: dict[str, Any]) -> None:
    """As one file with the sidecar, byte for byte; and a part as WAV."""
    zipped = served.post("/v1/zip", json={"ids": [hit["id"]]})
    with ZipFile(io.BytesIO(zipped.content)) as file:
        assert {name: file.read(name) for name in file.namelist()} == {KEY: CONTENT, SIDECAR: WORDS}
    cut = served.get(f"/v1/items/{hit['id']}/excerpt", params={"start_s": 0.5, "end_s": 0.75})
    with wave.open(io.BytesIO(cut.content)) as heard:
        assert heard.getnframes() == pytest.approx(heard.getframerate() / 4, abs=2)


def test_uploads_are_written_on_condition(served: TestClient) -> None:
    """New only where there is none, over another by its etag alone, and links lead to it."""
    path = "/v1/audio/new/rain + ü.wav"
    first = served.put(path, content=b"one")
    assert (first.status_code, served.put(path, content=b"two").status_code) == (201, 409)
    etag = first.json()["etag"]
    assert served.put(path, content=b"two", headers={"If-Match": f'"{etag}"'}).status_code == 200
    assert served.put(path, content=b"3", headers={"If-Match": f'"{etag}"'}).status_code == 412
