"""Searching: scores and their parts, what cannot be asked, and which encoder answers."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from core.bundle import load_bundle, save_bundle
from core.encoder import Encoder
from core.errors import ConfigurationError, QueryError, Unavailable
from core.index import Generation, Index, connect_embedded
from core.registry import open_registry
from core.rollout import Rollout
from core.search import Searcher, Towers
from core.settings import Settings
from core.store import FolderStore
from workers.service import create_app, open_searcher
from workers.sync import Limits, Syncer

SOUNDS = Path(__file__).parent.parent / "examples" / "sounds"
VERSION, OTHER = "tiny-000000", "other-111111"


@pytest.fixture
def index() -> Index:
    """Return an empty index in memory."""
    return Index(connect_embedded(), "audiofuse")


@pytest.fixture
def searcher(index: Index, tiny_encoder: Encoder) -> Searcher:
    """Return a searcher over some sounds."""
    _fill(index, VERSION, tiny_encoder)
    return Searcher(index, Towers(_nowhere, {VERSION: tiny_encoder}))


def _fill(index: Index, version: str, encoder: Encoder) -> Generation:
    generation = index.create(version, encoder)
    syncer = Syncer(FolderStore(SOUNDS / "music"), index, generation, encoder, Limits(60, 10**7))
    for key in ("gong.ogg", "cowbell.flac", "piano.wav"):
        syncer.sync(key)
    return generation


def _nowhere(version: str) -> Encoder:
    raise ConfigurationError(f"no encoder {version} is published")


def test_hits_are_ranked_and_their_parts_add_up(searcher: Searcher) -> None:
    """Best first, and audio and metadata make up each score; without words all is audio."""
    hits = searcher.search("a gong", top=3).hits
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

    hit = next(h for h in searcher.search("a gong", top=3).hits if h.key == "gong.ogg")
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
    found = Searcher(index, Towers(_nowhere, {VERSION: tiny_encoder})).search("a gong")
    assert (found.encoder, found.hits) == (None, [])


def test_a_query_never_meets_vectors_of_another_encoder(
    index: Index, tiny_encoder: Encoder
) -> None:
    """If a version is live whose encoder cannot be had the search refuses, and names it."""
    index.create("other-111111", tiny_encoder)
    with pytest.raises(ConfigurationError, match=r"other-111111"):
        Searcher(index, Towers(_nowhere, {VERSION: tiny_encoder})).search("a gong")


@pytest.fixture
def no_caching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every query resolve the alias."""
    monkeypatch.setattr("core.search.POLL_S", 0)


@pytest.fixture
def other_encoder(tiny_encoder: Encoder) -> Encoder:
    """Return an encoder of the same shape whose vectors mean something else."""
    return Encoder.random(tiny_encoder.config, seed=1)


@pytest.fixture
def encoders(tiny_encoder: Encoder, other_encoder: Encoder) -> dict[str, Encoder]:
    """Return both encoders by version."""
    return {VERSION: tiny_encoder, OTHER: other_encoder}


@pytest.mark.usefixtures("no_caching")
def test_the_live_generations_own_encoder_answers(
    index: Index, encoders: dict[str, Encoder]
) -> None:
    """After a switch the new version finds by the new tower, and after the way back the old one."""
    generations = [_fill(index, version, encoder) for version, encoder in encoders.items()]
    searcher = Searcher(index, Towers(_nowhere, encoders))
    answers = []
    for generation in (*generations, generations[0]):
        index.promote(generation)
        answers.append(searcher.search("a gong"))
        assert answers[-1].encoder == generation.version
        assert {hit.payload["encoder"] for hit in answers[-1].hits} == {generation.version}
    old, new, again = ([hit.score for hit in found.hits] for found in answers)
    assert old == pytest.approx(again)
    assert old != pytest.approx(new)


@pytest.mark.usefixtures("no_caching")
def test_the_old_generation_answers_while_the_new_encoder_is_loaded(
    index: Index, tiny_encoder: Encoder, other_encoder: Encoder
) -> None:
    """No query waits or fails for a switch that came before its encoder was there."""
    _fill(index, VERSION, tiny_encoder)
    new, go_on = _fill(index, OTHER, other_encoder), threading.Event()

    def load(version: str) -> Encoder:
        assert go_on.wait(60), version
        return other_encoder

    searcher = Searcher(index, Towers(load, {VERSION: tiny_encoder}))
    searcher.search("a gong")
    index.promote(new)
    loading = threading.Thread(target=searcher.prepare)
    loading.start()
    assert searcher.search("a gong").encoder == VERSION
    go_on.set()
    loading.join()
    assert searcher.search("a gong").encoder == OTHER


def test_a_generation_that_was_dropped_is_not_asked_again(
    index: Index, encoders: dict[str, Encoder]
) -> None:
    """If what was searched is gone, the same query is answered by what is live now."""
    old, new = (_fill(index, version, encoder) for version, encoder in encoders.items())
    searcher = Searcher(index, Towers(encoders.__getitem__))
    assert searcher.search("a gong").encoder == VERSION
    index.promote(new)
    index.drop(old)
    found = searcher.search("a gong")
    assert (found.encoder, len(found.hits)) == (OTHER, 3)


def test_what_may_soon_be_live_is_loaded_and_nothing_else(
    index: Index, tiny_encoder: Encoder
) -> None:
    """The versions of a rollout are loaded before they are needed, and let go of afterwards."""
    index.create(VERSION, tiny_encoder)
    wanted = [VERSION, OTHER]
    searcher = Searcher(index, Towers(lambda _: tiny_encoder), lambda: wanted)
    searcher.prepare()
    assert searcher.loaded == {VERSION, OTHER}
    wanted.remove(OTHER)
    searcher.prepare()
    assert searcher.loaded == {VERSION}


def test_a_candidate_that_cannot_be_loaded_disturbs_nobody(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong is logged and tried again more and more seldom, and search goes on."""
    errors = iter([Unavailable("away"), MemoryError("too large"), None])
    pauses: list[float] = []

    def wanted() -> list[str]:
        if error := next(errors):
            raise error
        return []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(searcher, "_wanted", wanted)
    monkeypatch.setattr("core.search.time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        searcher.follow()
    assert pauses == [1, 2, 4, 1]
    assert "too large" in caplog.text
    assert searcher.search("a gong").encoder == VERSION


@pytest.mark.usefixtures("no_caching")
def test_no_query_fails_or_mixes_while_the_alias_moves(
    index: Index, encoders: dict[str, Encoder]
) -> None:
    """Eight clients ask while versions are switched to and fro: each answer is of one version."""
    generations = [_fill(index, version, encoder) for version, encoder in encoders.items()]
    expected = {}
    for generation in generations:
        index.promote(generation)
        searcher = Searcher(index, Towers(encoders.__getitem__))
        expected[generation.version] = [hit.score for hit in searcher.search("a gong").hits]
    searcher = Searcher(index, Towers(_nowhere, encoders))
    answers: list[Any] = []

    def ask() -> None:
        answers.extend(searcher.search("a gong") for _ in range(25))

    _while(lambda turn: index.promote(generations[turn % 2]), [ask] * 8)
    assert len(answers) == 200
    assert {found.encoder for found in answers} == set(encoders)
    for found in answers:
        assert [hit.score for hit in found.hits] == pytest.approx(expected[found.encoder])


def _while(switch: Callable[[int], None], jobs: list[Callable[[], None]]) -> None:
    """Switch to and fro while the jobs are done."""
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    turn = 0
    while any(thread.is_alive() for thread in threads):
        switch(turn)
        turn += 1
        time.sleep(0.002)


def test_the_service_answers_in_json(searcher: Searcher) -> None:
    """Hits come over HTTP with their parts, and a bad question is a 422 with the reason."""
    client = TestClient(create_app(searcher))
    found = client.get("/v1/search", params={"q": "a gong", "top": 2}).json()
    assert found["encoder"] == VERSION
    assert [set(hit) for hit in found["hits"]] == [
        {"key", "score", "audio", "metadata", "payload"}
    ] * 2
    refused = client.get("/v1/search", params={"q": " "})
    assert refused.status_code == 422
    assert "no words" in refused.json()["error"]


def test_the_service_tells_what_it_has_loaded(searcher: Searcher) -> None:
    """It is ready for the versions that are loaded and for no other."""
    client = TestClient(create_app(searcher))
    assert client.get("/readyz").status_code == 200
    assert client.get("/readyz", params={"version": VERSION}).status_code == 200
    assert client.get("/readyz", params={"version": OTHER}).status_code == 503


@pytest.fixture
def bundle(tiny_encoder: Encoder, tmp_path: Path) -> Path:
    """Return a bundle of the tiny encoder."""
    return save_bundle(tiny_encoder, tmp_path, "tiny", "")


def test_the_service_begins_with_its_own_encoder(bundle: Path) -> None:
    """Without a rollout AUDIOFUSE_ENCODER is loaded, though the index is away as yet."""
    settings = Settings(encoder=bundle, qdrant_url="http://127.0.0.1:9")
    assert open_searcher(settings).loaded == {bundle.name}
    with pytest.raises(ConfigurationError, match="AUDIOFUSE_ENCODER"):
        open_searcher(Settings(qdrant_url="http://127.0.0.1:9"))


def test_the_service_loads_what_the_rollout_names(
    index: Index, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once there was a rollout both its versions are loaded from the registry."""
    registry = open_registry(Settings())
    other = save_bundle(load_bundle(bundle), bundle.parent, "other", "")
    for each in (bundle, other):
        registry.publish(each)
    registry.write(Rollout(live=bundle.name).start(other.name, "me"), None)
    monkeypatch.setattr("workers.service.open_index", lambda _: index)
    assert open_searcher(Settings()).loaded == {bundle.name, other.name}
