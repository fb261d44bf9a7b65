"""A service over four sounds, that is open to everybody unless it is told otherwise."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from bundles import saved_bundle
from fastapi.testclient import TestClient
from local_encoder import LocalEncoder

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.index.index import Index, connect_embedded
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.decoding.pool import Decoders
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.service.app import create_app

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
KEYS = ("music/gong.ogg", "music/cowbell.flac", "music/piano.wav", "animals/owl.wav")


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bucket folder with some sounds, their sidecars, and what is none of it."""
    root = tmp_path_factory.mktemp("service") / "sounds"
    for key in KEYS:
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOUNDS / key, root / key)
    for sidecar in ("music/gong.json", "music/piano.wav.json"):
        shutil.copy(SOUNDS / sidecar, root / sidecar)
    (root / "secret.txt").write_text("nobody's business")
    return root


@pytest.fixture(scope="session")
def version(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bundle of the encoder that the service has."""
    return saved_bundle(tiny_encoder, tmp_path_factory.mktemp("bundles"), "tiny", "")


@pytest.fixture(scope="session")
def searcher(bucket: Path, version: Path, tiny_encoder: Encoder) -> Iterator[Searcher]:
    """Return a searcher over the bucket, that decodes in another process."""
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create(version.name, tiny_encoder)
    syncer = Syncer(
        BucketSide(FolderStore(bucket), Limits(60, 10**7)),
        IndexSide(index, generation),
        LocalEncoder(tiny_encoder),
    )
    for key in KEYS:
        syncer.sync(key)
    decoders = Decoders(1, 30)
    yield Searcher(
        index, LoadedEncoders(_nowhere, {version.name: tiny_encoder}), open_sound=decoders.open
    )
    decoders.close()


def _nowhere(version: str) -> Encoder:
    raise ConfigurationError(f"no encoder {version} is published")


@pytest.fixture
def open_to(searcher: Searcher) -> Callable[..., TestClient]:
    """Return what gives a client of a service with these settings."""

    def client(**settings: Any) -> TestClient:
        app = create_app(searcher, Settings(**settings))
        return TestClient(app, raise_server_exceptions=False)

    return client


@pytest.fixture
def client(open_to: Callable[..., TestClient], bucket: Path, version: Path) -> TestClient:
    """Return a client of a service that is open to everybody."""
    return open_to(bucket=str(bucket), encoder=version)


@pytest.fixture(scope="session")
def problem() -> Callable[[httpx.Response, int, str], str]:
    """Return what checks that an answer is the expected problem, and gives its detail."""
    return _problem


def _problem(answer: httpx.Response, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() == {"type", "title", "status", "detail"}
    assert (problem["status"], problem["type"].rpartition(":")[2]) == (status, kind)
    return str(problem["detail"])


@pytest.fixture(scope="session")
def keys_of() -> Callable[[httpx.Response], list[str]]:
    """Return what gives the keys of an answer's hits."""
    return _keys


def _keys(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["key"] for hit in answer.json()["hits"]]


@pytest.fixture(scope="session")
def bearer() -> Callable[[str], dict[str, str]]:
    """Return what makes the header that sends a key."""
    return lambda key: {"Authorization": f"Bearer {key}"}
