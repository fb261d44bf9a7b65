"""Which encoder answers: the live generation's own, whatever is switched, dropped or loaded."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bundles import saved_bundle

from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError, Unavailable
from audiofuse.core.index.index import Generation, Index
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher, open_searcher
from audiofuse.core.settings import Settings

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
VERSION, OTHER = "tiny-000000", "other-111111"
Fill = Callable[[Index, str, Encoder], Generation]


def _nowhere(version: str) -> Encoder:
    raise ConfigurationError(f"no encoder {version} is published")


def test_an_empty_index_finds_nothing(index: Index, tiny_encoder: Encoder) -> None:
    """Before the first generation exists a search has no hits, and is no error."""
    found = Searcher(index, LoadedEncoders(_nowhere, {VERSION: tiny_encoder})).search("a gong")
    assert (found.encoder, found.hits) == (None, [])


def test_a_query_never_meets_vectors_of_another_encoder(
    index: Index, tiny_encoder: Encoder
) -> None:
    """If a version is live whose encoder cannot be had the search refuses, and names it."""
    index.create("other-111111", tiny_encoder)
    with pytest.raises(ConfigurationError, match=r"other-111111"):
        Searcher(index, LoadedEncoders(_nowhere, {VERSION: tiny_encoder})).search("a gong")


@pytest.mark.usefixtures("no_caching")
def test_the_live_generations_own_encoder_answers(
    index: Index, encoders: dict[str, Encoder], fill: Fill
) -> None:
    """After a switch the new version finds by the new tower, and after the way back the old one."""
    generations = [fill(index, version, encoder) for version, encoder in encoders.items()]
    searcher = Searcher(index, LoadedEncoders(_nowhere, encoders))
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
    index: Index, tiny_encoder: Encoder, other_encoder: Encoder, fill: Fill
) -> None:
    """No query waits or fails for a switch that came before its encoder was there."""
    fill(index, VERSION, tiny_encoder)
    new, go_on = fill(index, OTHER, other_encoder), threading.Event()

    def load(version: str) -> Encoder:
        assert go_on.wait(60), version
        return other_encoder

    searcher = Searcher(index, LoadedEncoders(load, {VERSION: tiny_encoder}))
    searcher.search("a gong")
    index.promote(new)
    loading = threading.Thread(target=searcher.prepare)
    loading.start()
    assert searcher.search("a gong").encoder == VERSION
    go_on.set()
    loading.join()
    assert searcher.search("a gong").encoder == OTHER


def test_a_generation_that_was_dropped_is_not_asked_again(
    index: Index, encoders: dict[str, Encoder], fill: Fill
) -> None:
    """If what was searched is gone, the same query is answered by what is live now."""
    old, new = (fill(index, version, encoder) for version, encoder in encoders.items())
    searcher = Searcher(index, LoadedEncoders(encoders.__getitem__))
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
    searcher = Searcher(index, LoadedEncoders(lambda _: tiny_encoder), lambda: wanted)
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

    monkeypatch.setattr(searcher._live, "_wanted", wanted)
    monkeypatch.setattr("audiofuse.core.search.live.time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        searcher.follow()
    assert pauses == [1, 2, 4, 1]
    assert "too large" in caplog.text
    assert searcher.search("a gong").encoder == VERSION


@pytest.mark.usefixtures("no_caching")
def test_no_query_fails_or_mixes_while_the_alias_moves(
    index: Index, encoders: dict[str, Encoder], fill: Fill
) -> None:
    """Eight clients ask while versions are switched to and fro: each answer is of one version."""
    generations = [fill(index, version, encoder) for version, encoder in encoders.items()]
    expected = {}
    for generation in generations:
        index.promote(generation)
        searcher = Searcher(index, LoadedEncoders(encoders.__getitem__))
        expected[generation.version] = [hit.score for hit in searcher.search("a gong").hits]
    searcher = Searcher(index, LoadedEncoders(_nowhere, encoders))
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


@pytest.fixture
def bundle(tiny_encoder: Encoder, tmp_path: Path) -> Path:
    """Return a bundle of the tiny encoder."""
    return saved_bundle(tiny_encoder, tmp_path, "tiny", "")


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
    monkeypatch.setattr("audiofuse.core.search.search.open_index", lambda _: index)
    assert open_searcher(Settings()).loaded == {bundle.name, other.name}


@pytest.mark.usefixtures("no_caching")
def test_nobody_waits_for_another_who_asks_what_is_live(
    searcher: Searcher, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one thread's question for the alias hangs, others search what was live before."""
    searcher.search("a gong")
    live, go_on, hangs = index.live, threading.Event(), threading.Event()

    def hang() -> Generation | None:
        hangs.set()
        go_on.wait(100)
        return live()

    monkeypatch.setattr(index, "live", hang)
    with ThreadPoolExecutor(1) as other:
        held_up = other.submit(searcher.search, "a gong")
        assert hangs.wait(60)
        try:
            assert len(searcher.search("a gong").hits) == 3
            assert not held_up.done()
        finally:
            go_on.set()
        assert len(held_up.result().hits) == 3
