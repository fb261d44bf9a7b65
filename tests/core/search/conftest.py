"""An index in memory with some sounds, and encoders that tell them apart."""

from collections.abc import Callable
from pathlib import Path

import pytest
from local_encoder import LocalEncoder

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.index.index import Generation, Index, connect_embedded
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
VERSION, OTHER = "tiny-000000", "other-111111"


@pytest.fixture
def index() -> Index:
    """Return an empty index in memory."""
    return Index(connect_embedded(), "audiofuse")


@pytest.fixture
def searcher(index: Index, tiny_encoder: Encoder) -> Searcher:
    """Return a searcher over some sounds."""
    _fill(index, VERSION, tiny_encoder)
    return Searcher(index, LoadedEncoders(_nowhere, {VERSION: tiny_encoder}))


@pytest.fixture(scope="session")
def fill() -> Callable[[Index, str, Encoder], Generation]:
    """Return what makes a generation with some sounds."""
    return _fill


def _fill(index: Index, version: str, encoder: Encoder) -> Generation:
    generation = index.create(version, encoder)
    syncer = Syncer(
        BucketSide(FolderStore(SOUNDS / "music"), Limits(60, 10**7)),
        IndexSide(index, generation),
        LocalEncoder(encoder),
    )
    for key in ("gong.ogg", "cowbell.flac", "piano.wav"):
        syncer.sync(key)
    return generation


def _nowhere(version: str) -> Encoder:
    raise ConfigurationError(f"no encoder {version} is published")


@pytest.fixture
def other_encoder(tiny_encoder: Encoder) -> Encoder:
    """Return an encoder of the same shape whose vectors mean something else."""
    return Encoder.random(tiny_encoder.config, seed=1)


@pytest.fixture
def encoders(tiny_encoder: Encoder, other_encoder: Encoder) -> dict[str, Encoder]:
    """Return both encoders by version."""
    return {VERSION: tiny_encoder, OTHER: other_encoder}


@pytest.fixture
def no_caching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every query resolve the alias."""
    monkeypatch.setattr("audiofuse.core.search.live.POLL_S", 0)
