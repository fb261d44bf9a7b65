"""What a federation has besides answers: sounds, its page, its description, what it leaves out."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from local_encoder import LocalEncoder
from typer.testing import CliRunner

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.index.index import Index, connect_embedded
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.commands.main import cli
from audiofuse.workers.deployment.local import free_port
from audiofuse.workers.federation.app import create_federation
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.programs.client import Client
from audiofuse.workers.service.app import create_app

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
Serving = Callable[[FastAPI], AbstractContextManager[str]]


@pytest.fixture
def hearing(
    tmp_path: Path, tiny_encoder: Encoder, serving: Serving, asking: Callable[..., TestClient]
) -> Iterator[TestClient]:
    """Return a client of a federation of one folder with one sound."""
    (tmp_path / "sounds" / "a b").mkdir(parents=True)
    (tmp_path / "sounds" / "a b" / "gong.ogg").write_bytes((SOUNDS / "music/gong.ogg").read_bytes())
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create("tiny-000000", tiny_encoder)
    bucket = BucketSide(FolderStore(tmp_path / "sounds"), Limits(60, 10**7))
    Syncer(bucket, IndexSide(index, generation), LocalEncoder(tiny_encoder)).sync("a b/gong.ogg")
    loaded = LoadedEncoders(lambda _: tiny_encoder, {"tiny-000000": tiny_encoder})
    settings = Settings(bucket=str(tmp_path / "sounds"))
    with serving(create_app(Searcher(index, loaded), settings)) as url:
        yield asking({"folder": url})


def test_sounds_of_a_member_are_heard(hearing: TestClient) -> None:
    """Whole, by range and as an excerpt; a link that was changed is refused."""
    whole = (SOUNDS / "music/gong.ogg").read_bytes()
    (hit,) = hearing.get("/v1/search", params={"q": "a gong"}).json()["hits"]
    assert hit["audio_url"].startswith("/v1/audio/folder/a%20b/gong.ogg?")
    played = hearing.get(hit["audio_url"])
    assert (played.content, played.headers["content-type"]) == (whole, "audio/ogg")
    part = hearing.get(hit["audio_url"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    assert hearing.get(hit["audio_url"] + "0").status_code == 403
    cut = {"start_s": 0, "end_s": 0.5}
    excerpt = hearing.get(f"/v1/items/{hit['id']}/excerpt", params=cut)
    assert excerpt.content[:4] == b"RIFF"
    by_sound = hearing.post("/v1/search/sound", params={"keyword": ["x"]}, content=whole)
    assert (by_sound.json()["hits"], by_sound.json()["partial"]) == ([], [])
    by_sound = hearing.post("/v1/search/sound", content=whole).json()
    assert by_sound["hits"][0]["score"] == pytest.approx(1, abs=1e-3)
    assert hearing.post("/v1/search/sound", content=b"no sound").status_code == 422


@pytest.mark.parametrize("key", ["../../healthz", "a/../../../healthz", "./../../healthz"])
def test_a_link_to_a_sound_leads_to_nothing_else(hearing: TestClient, key: str) -> None:
    """Not out of where members serve their sounds, however the way is written."""
    for written in (quote(key, safe=""), key.replace(".", "%2e")):
        path = f"/v1/audio/folder/{written}"
        assert hearing.get(path, params={"expires": 1, "signature": "a"}).status_code == 404


def test_every_route_is_described(all_: TestClient) -> None:
    """OpenAPI has what a federation answers, and nothing of what it leaves out."""
    described = all_.get("/openapi.json").json()
    assert {"/v1/search", "/v1/search/sound", "/v1/similar/{id}", "/v1/items", "/v1/facets"} <= (
        described["paths"].keys()
    )
    assert "/v1/map" not in described["paths"]
    found: dict[str, Any] = described["components"]["schemas"]["FoundByAll"]
    assert "partial" in found["required"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "map"), ("GET", "export"), ("POST", "zip"), ("POST", "feedback"), ("PUT", "audio/a")],
)
def test_what_needs_one_deployment_says_so(all_: TestClient, method: str, path: str) -> None:
    """It is not done for several, and it is told where it is."""
    answer = all_.request(method, f"/v1/{path}")
    assert answer.status_code == 501
    assert "ask the deployment" in answer.json()["detail"]
    assert all_.get("/v1/nonsense").status_code == 404
    assert all_.get("/v1/feedback").json() == {"open": False}


def test_who_is_missing_is_told_wherever_one_asks(
    urls: dict[str, str], serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the terminal, as JSON for scripts, and in Python."""
    gone = f"http://127.0.0.1:{free_port()}"
    federation = create_federation(Settings(ask=f"field={urls['field']},gone={gone}"))
    with serving(federation) as url:
        monkeypatch.setenv(PREFIX + "SEARCH_URL", url)
        asked = ["search", "a gong", "--limit", "2"]
        told = CliRunner().invoke(cli, asked, env={"COLUMNS": "200"}).output
        assert "without gone: does not answer" in told
        assert "field/" in told
        told = CliRunner().invoke(cli, ["search", "a gong", "--json"]).output
        missing = [{"member": "gone", "reason": "does not answer"}]
        assert json.loads(told)["partial"] == missing
        with Client() as client:
            assert client.search("a gong").partial == missing
            assert client.items(limit=1).sounds.partial == missing


def test_the_page_is_there(all_: TestClient) -> None:
    """With what it loads; it may play sounds of any storage, and read from nowhere else."""
    page = all_.get("/")
    assert all_.get(re.findall(r'src="(web/[^"]+\.js)"', page.text)[0]).status_code == 200
    policy = page.headers["content-security-policy"]
    assert "media-src 'self' blob: https: http:;" in policy
    assert policy.endswith("connect-src 'self'")
