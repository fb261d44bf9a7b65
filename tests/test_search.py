"""Searching: scores, their parts, and what cannot be asked."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from core.encoder import Encoder
from core.errors import ConfigurationError, QueryError
from core.index import Index, connect_embedded
from core.search import Searcher
from core.store import FolderStore
from workers.service import create_app
from workers.sync import Limits, Syncer

SOUNDS = Path(__file__).parent.parent / "examples" / "sounds"
VERSION = "tiny-000000"


@pytest.fixture
def index() -> Index:
    """Return an empty index in memory."""
    return Index(connect_embedded(), "audiofuse")


@pytest.fixture
def searcher(index: Index, tiny_encoder: Encoder) -> Searcher:
    """Return a searcher over all sounds of one example folder."""
    generation = index.create(VERSION, tiny_encoder)
    syncer = Syncer(
        FolderStore(SOUNDS / "music"), index, generation, tiny_encoder, Limits(60, 10**7)
    )
    for key in ("gong.ogg", "cowbell.flac", "piano.wav"):
        syncer.sync(key)
    return Searcher(index, tiny_encoder, VERSION)


def test_hits_are_ranked_and_their_parts_add_up(searcher: Searcher) -> None:
    """Best first, and audio and metadata make up each score; without words all is audio."""
    hits = searcher.search("a gong", top=3)
    assert len(hits) == 3
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.audio + hit.metadata == pytest.approx(hit.score)
    mute = next(hit for hit in hits if hit.payload["has_text"] == "no")
    assert mute.key == "cowbell.flac"
    assert mute.metadata == pytest.approx(0, abs=1e-5)


def test_the_metadata_part_is_what_the_words_give(
    searcher: Searcher, tiny_encoder: Encoder
) -> None:
    """The metadata part is the query times the item's metadata vector over the item's length."""
    import torch

    from core.items import Metadata

    hit = next(h for h in searcher.search("a gong", top=3) if h.key == "gong.ogg")
    sidecar = Metadata.from_json((SOUNDS / "music/gong.json").read_bytes())
    query = torch.nn.functional.normalize(tiny_encoder.read(["a gong"]))[0]
    words = tiny_encoder.read([sidecar.text])[0] @ query / hit.payload["item_norm"]
    assert hit.metadata == pytest.approx(float(words), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "top"), [("", 5), ("?!", 5), ("x" * 1001, 5), ("a", 0), ("a", 1001)]
)
def test_a_bad_question_is_refused(searcher: Searcher, text: str, top: int) -> None:
    """No words, too many, or a senseless number of hits is a QueryError."""
    with pytest.raises(QueryError):
        searcher.search(text, top)


def test_an_empty_index_finds_nothing(index: Index, tiny_encoder: Encoder) -> None:
    """Before the first generation exists a search has no hits, and is no error."""
    assert Searcher(index, tiny_encoder, VERSION).search("a gong") == []


def test_a_query_never_meets_vectors_of_another_encoder(
    index: Index, tiny_encoder: Encoder
) -> None:
    """If another version is live the search refuses, and names both."""
    index.create("other-111111", tiny_encoder)
    with pytest.raises(ConfigurationError, match=r"other-111111.*tiny-000000"):
        Searcher(index, tiny_encoder, VERSION).search("a gong")


def test_the_service_answers_in_json(searcher: Searcher) -> None:
    """Hits come over HTTP with their parts, and a bad question is a 422 with the reason."""
    client = TestClient(create_app(searcher))
    found = client.get("/v1/search", params={"q": "a gong", "top": 2}).json()
    assert [set(hit) for hit in found["hits"]] == [
        {"key", "score", "audio", "metadata", "payload"}
    ] * 2
    refused = client.get("/v1/search", params={"q": " "})
    assert refused.status_code == 422
    assert "no words" in refused.json()["error"]
