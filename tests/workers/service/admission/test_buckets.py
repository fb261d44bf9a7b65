"""Two buckets, a folder and one of S3, in one deployment: indexed, searched, each for itself."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import httpx
import pytest
from fastapi.testclient import TestClient
from local_encoder import LocalEncoder
from pydantic import SecretStr
from redis import Redis

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError, Unavailable
from audiofuse.core.index.index import Generation, Index, connect_embedded
from audiofuse.core.items import point_id
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.store import FolderStore, Store, open_store
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.repair import backfill, brake
from audiofuse.workers.repair.comparison import compare
from audiofuse.workers.repair.findings import Finding
from audiofuse.workers.service.app import create_app
from audiofuse.workers.telemetry.names import Outcome

SOUNDS = Path(__file__).parents[4] / "examples" / "sounds"
ALL, GUEST = "all-of-it-0123456789", "guest-of-field-012345"
GONG, PIANO = "field/2026/gong.ogg", "studio/piano.wav"


@dataclass
class World:
    """A deployment's parts."""

    settings: Settings
    store: Store
    index: Index
    generation: Generation
    encoder: Encoder
    studio: Path

    def syncer(self, store: Store | None = None, encoder: Any = None) -> Syncer:
        """Return what syncs a store, the deployment's own, into its index."""
        return Syncer(
            BucketSide(store or self.store, Limits(60, 10**7)),
            IndexSide(self.index, self.generation),
            encoder or LocalEncoder(self.encoder),
        )


@pytest.fixture
def world(aws_settings: Settings, tmp_path: Path, tiny_encoder: Encoder) -> World:
    """Return two buckets with a sound each, of one name and content, and more outside a prefix."""
    studio = tmp_path / "studio"
    studio.mkdir()
    for name in ("piano.wav", "piano.wav.json"):
        (studio / name).write_bytes((SOUNDS / "music" / name).read_bytes())
    client, bucket = s3_client(aws_settings), aws_settings.bucket.removeprefix("s3://")
    for key in ("2026/gong.ogg", "2025/gong.ogg"):
        client.put_object(Bucket=bucket, Key=key, Body=(SOUNDS / "music/gong.ogg").read_bytes())
    secret = aws_settings.s3_secret_access_key
    field = {
        "name": "field", "address": f"s3://{bucket}/2026/",
        "endpoint_url": aws_settings.s3_endpoint_url, "access_key_id": "test",
        "secret_access_key": secret.get_secret_value() if secret else "",
    }  # fmt: skip
    mounts = json.dumps([field, {"name": "studio", "address": str(studio)}])
    settings = Settings(
        buckets=SecretStr(mounts), uploads=True,
        api_keys=SecretStr(f"a:{ALL}:search+audio+upload, b:{GUEST}:search+audio+upload@field/"),
    )  # fmt: skip
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create("tiny-000000", tiny_encoder)
    return World(settings, open_store(settings), index, generation, tiny_encoder, studio)


@pytest.fixture
def asked(world: World, bearer: Callable[[str], dict[str, str]]) -> Any:
    """Return what gives a client by its key, of a service over both once they are indexed."""
    for info in world.store.list():
        if not info.key.endswith(".json"):
            assert world.syncer().sync(info.key).outcome is Outcome.CREATED
    encoders = LoadedEncoders(_nowhere, {"tiny-000000": world.encoder})
    app = create_app(Searcher(world.index, encoders), world.settings)
    return lambda key: TestClient(app, raise_server_exceptions=False, headers=bearer(key))


def _nowhere(version: str) -> Encoder:
    raise ConfigurationError(f"no encoder {version} is published")


def test_both_are_found_each_under_its_name(asked: Any, world: World) -> None:
    """Hits name their bucket, are filtered by it, and are heard where they lie."""
    client = asked(ALL)
    hits = {each["key"]: each for each in client.get("/v1/search?q=a gong").json()["hits"]}
    assert {key: hit["payload"]["bucket"] for key, hit in hits.items()} == {
        GONG: "field", PIANO: "studio",
    }  # fmt: skip
    assert hits[PIANO]["payload"]["title"] == "Piano"
    assert hits[PIANO]["location"] == str(world.studio / "piano.wav")
    assert client.get(hits[PIANO]["audio_url"]).content == (world.studio / "piano.wav").read_bytes()
    assert httpx.get(hits[GONG]["audio_url"]).content[:4] == b"OggS"
    only = client.get("/v1/search?q=a gong&bucket=studio").json()["hits"]
    assert [each["key"] for each in only] == [PIANO]
    folders = client.get("/v1/facets").json()["folders"]
    assert {each["value"] for each in folders} == {"field/", "studio/"}
    zipped = client.post("/v1/zip", json={"ids": [each["id"] for each in hits.values()]}).content
    assert set(ZipFile(BytesIO(zipped)).namelist()) == {GONG, PIANO, f"{PIANO}.json"}


def test_a_key_for_one_bucket_knows_of_no_other(asked: Any) -> None:
    """A folder of a key's is a bucket's name, or a folder in it."""
    client = asked(GUEST)
    assert [each["key"] for each in client.get("/v1/search?q=a").json()["hits"]] == [GONG]
    assert client.get("/v1/items").json()["items"] == 1
    piano = point_id("studio", "piano.wav")
    assert client.get(f"/v1/items/{piano}").status_code == 404
    assert client.put("/v1/audio/studio/new.json", content=b"{}").status_code == 403


def test_uploads_go_to_the_bucket_that_is_named(asked: Any, world: World) -> None:
    """Not outside of what is meant of it, and to none that nobody named."""
    client = asked(ALL)
    for key in ("studio/new.json", "field/2026/new.json"):
        assert client.put(f"/v1/audio/{key}", content=b"{}").status_code == 201
        assert world.store.head(key)
    assert (world.studio / "new.json").read_bytes() == b"{}"
    for key in ("field/2025/new.json", "other/new.json", "new.json"):
        assert client.put(f"/v1/audio/{key}", content=b"{}").status_code == 422


def test_one_that_is_away_holds_up_no_other(
    world: World, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its messages wait and its points stay; the others are synced and compared."""
    syncer, letters = world.syncer(), DeadLetters(redis, "audiofuse")
    syncer.sync(PIANO)
    world.studio.rename(world.studio.parent / "elsewhere")
    assert syncer.sync(GONG).outcome is Outcome.CREATED
    with pytest.raises(Unavailable):
        syncer.sync(PIANO)
    due, runs = [*world.store.parts()], []

    def reconcile(_: Settings, part: str) -> Any:
        with compare(world.store, world.index, world.generation, letters, part) as comparison:
            return comparison

    monkeypatch.setattr(backfill, "reconcile", reconcile)
    with pytest.raises(Unavailable):
        backfill._reconcile_each(world.settings, due, runs)
    assert due == ["studio/"]
    assert [run.found[Finding.AGREED] for run in runs] == [1]
    assert world.index.count(world.generation) == 2


def test_one_that_is_suddenly_empty_keeps_its_items(
    world: World, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many the others have: each bucket is weighed by itself."""
    monkeypatch.setattr(brake, "LOST_ITEMS", 0)
    monkeypatch.setattr(brake, "LOST_SHARE", 0.7)
    letters = DeadLetters(redis, "audiofuse")
    for key in (GONG, PIANO):
        world.syncer().sync(key)
    (world.studio / "piano.wav").unlink()
    with compare(world.store, world.index, world.generation, letters) as comparison:
        assert (comparison.removals.lost, comparison.removals.items) == (1, 1)
        assert Finding.ORPHANED not in comparison.to_queue()
        assert "--prefix 'studio/'" in str(comparison.removals)


def test_an_only_bucket_becomes_one_of_several(world: World) -> None:
    """Under its own name it keeps its points: they are fused anew, and nothing is heard again."""
    alone = FolderStore(world.studio)
    assert world.syncer(alone).sync("piano.wav").outcome is Outcome.CREATED
    local = LocalEncoder(world.encoder)
    deaf = SimpleNamespace(
        fuses_stored_audio=True, fuse=local.fuse, fuse_windows=local.fuse_windows
    )
    assert world.syncer(encoder=deaf).sync(PIANO).outcome is Outcome.REFUSED
    (point,) = world.index.scroll(world.generation, ["key", "bucket"])
    assert point.payload == {"key": PIANO, "bucket": "studio"}
    assert world.syncer(encoder=deaf).sync(PIANO).outcome is Outcome.UNCHANGED


def test_one_that_is_given_up_loses_its_items_on_purpose(world: World, redis: Redis) -> None:
    """Without an address nothing is in it any more: its items go by name, the others stay."""
    for key in (GONG, PIANO):
        world.syncer().sync(key)
    listed = json.loads(world.settings.buckets.get_secret_value() if world.settings.buckets else "")
    given_up = json.dumps([{**each, "address": None} if each["name"] == "studio" else each
                           for each in listed])  # fmt: skip
    store = open_store(world.settings.model_copy(update={"buckets": SecretStr(given_up)}))
    letters = DeadLetters(redis, "audiofuse")
    with compare(store, world.index, world.generation, letters, "studio/") as comparison:
        lost = [*comparison.keys(*comparison.to_queue(remove=True))]
    assert lost == [PIANO]
    assert world.syncer(store).sync(PIANO).outcome is Outcome.REMOVED
    (left,) = world.index.scroll(world.generation, ["key"])
    assert left.payload["key"] == GONG
    assert (world.studio / "piano.wav").exists()
