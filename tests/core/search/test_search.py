"""Searching: what may be asked, scores and their parts, and which encoder answers."""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError, NotFound, QueryError, Rejected, Unavailable
from audiofuse.core.index.index import Generation, Index, connect_embedded
from audiofuse.core.query import Filter, Question
from audiofuse.core.search.loaded import LoadedEncoder, LoadedEncoders
from audiofuse.core.search.search import AsyncSearcher, Found, Searcher, open_searcher
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.sync import Limits, Syncer

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
    hits = searcher.search(Question("a gong", limit=3)).hits
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

    from audiofuse.core.items import Metadata

    hit = next(h for h in searcher.search(Question("a gong", limit=3)).hits if h.key == "gong.ogg")
    sidecar = Metadata.from_json((SOUNDS / "music/gong.json").read_bytes())
    query = torch.nn.functional.normalize(tiny_encoder.encode_text(["a gong"]))[0]
    words = tiny_encoder.encode_text([sidecar.text])[0] @ query / hit.payload["item_norm"]
    assert hit.metadata == pytest.approx(float(words), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "limit"), [("", 5), ("?!", 5), ("x" * 1001, 5), ("a", 0), ("a", 1001)]
)
def test_a_bad_question_is_refused(text: str, limit: int) -> None:
    """No words, too many, or a senseless number of hits is a QueryError."""
    with pytest.raises(QueryError):
        Question(text, limit=limit)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "no words"),
        ({"text": "a", "balance": 1.1}, "balance"),
        ({"text": "a", "offset": -1}, "offset"),
        ({"text": "a", "offset": 9_999, "limit": 2}, "10000"),
        ({"text": "a", "offset": 199, "limit": 2, "unique": True}, "200"),
        ({"text": "a", "without": "!"}, "no words"),
        ({"like": "gong.ogg"}, "no item's id"),
        ({"like": "{6BA7B810-9DAD-51D1-80B4-00C04FD430C8}"}, "no item's id"),
    ],
)
def test_what_makes_no_question_is_said(options: dict[str, Any], told: str) -> None:
    """Each part of a question that cannot be meant is refused in words that name it."""
    with pytest.raises(QueryError, match=told):
        Question(**options)


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ({"keywords": ("x",) * 21}, "keywords"),
        ({"labels": ("x" * 201,)}, "labels"),
        ({"prefix": "x" * 1025}, "prefix"),
        ({"since": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001 - that is the point
    ],
)
def test_what_makes_no_filter_is_said(conditions: dict[str, Any], told: str) -> None:
    """Too many or too long conditions, or a time without a zone, are refused by name."""
    with pytest.raises(QueryError, match=told):
        Filter(**conditions)


def _ids(searcher: Searcher) -> dict[str, str]:
    return {hit.key: hit.id for hit in searcher.search("a gong").hits}


def test_an_item_finds_what_is_like_it_but_not_itself(searcher: Searcher) -> None:
    """The neighbours of an item are ranked by the cosine of item vectors."""
    id_ = _ids(searcher)["gong.ogg"]
    hits = searcher.search(Question(like=id_)).hits
    assert {hit.key for hit in hits} == {"cowbell.flac", "piano.wav"}
    other = searcher.search(Question(like=hits[0].id)).hits
    back = next(hit for hit in other if hit.key == "gong.ogg")
    assert back.score == pytest.approx(hits[0].score, abs=1e-5)
    with pytest.raises(NotFound, match=r"0000"):
        searcher.search(Question(like="6ba7b810-9dad-51d1-80b4-000000000000"))


def test_a_sound_finds_itself_whatever_its_metadata(searcher: Searcher) -> None:
    """A sound alone is compared with sounds alone: the same sound has the cosine 1, all audio."""
    best, *others = searcher.search(Question(sound=SOUNDS / "music/gong.ogg")).hits
    assert best.key == "gong.ogg"
    assert (best.score, best.audio) == (pytest.approx(1, abs=1e-4),) * 2
    assert all(hit.score < 1 for hit in others)


def test_a_sound_may_be_asked_for_with_words(searcher: Searcher, tiny_encoder: Encoder) -> None:
    """Words and sound weigh alike: the query is the sum of both unit vectors."""
    import torch

    sound = SOUNDS / "music/piano.wav"
    hits = searcher.search(Question("a gong", sound=sound)).hits
    tower = LoadedEncoder(tiny_encoder)
    with open_recording(sound, 60) as recording:
        query = tower.encode_text("a gong") + tower.encode_audio(recording.windows())
    for hit in hits:
        item = torch.tensor(
            searcher._index.get(*_where(searcher, hit.id), vectors=True)[hit.id].item
        )
        assert hit.score == pytest.approx(float(item @ query / query.norm()), abs=1e-5)


def _where(searcher: Searcher, id_: str) -> tuple[Generation, list[str]]:
    live = searcher._index.live()
    assert live is not None
    return live, [id_]


def test_a_sound_that_cannot_be_heard_is_refused(searcher: Searcher, tmp_path: Path) -> None:
    """What is no sound, or longer than may be asked, is rejected with its reason."""
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(Rejected, match="not_audio"):
        searcher.search(Question(sound=tmp_path / "text.wav"))
    searcher._max_sound_s = 0.1
    with pytest.raises(Rejected, match="too_long"):
        searcher.search(Question(sound=SOUNDS / "music/gong.ogg"))


@pytest.mark.parametrize("balance", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_a_balance_fuses_anew_exactly(
    searcher: Searcher, tiny_encoder: Encoder, balance: float
) -> None:
    """Scores are the cosines that the items would have, had the encoder weighed them so."""
    import torch

    from audiofuse.core.items import Metadata

    query = LoadedEncoder(tiny_encoder).encode_text("a gong")
    hits = {h.key: h for h in searcher.search(Question("a gong", balance=balance)).hits}
    assert ("cowbell.flac" in hits) == (balance < 1)  # it has no metadata
    for key in hits.keys() & {"gong.ogg", "piano.wav"}:
        sidecar = next((SOUNDS / "music").glob(f"{key.split('.')[0]}*.json"))
        text = Metadata.from_json(sidecar.read_bytes()).text
        with open_recording(SOUNDS / "music" / key, 60) as recording:
            heard = tiny_encoder.encode_audio(recording.windows()).pooled
        audio = (1 - balance) * tiny_encoder.project_audio(heard)[0]
        item = audio + balance * tiny_encoder.encode_metadata([text])[0]
        expected = torch.stack([item, audio]) @ query / item.norm()
        assert (hits[key].score, hits[key].audio) == pytest.approx(expected.tolist(), abs=1e-4)


def test_words_that_are_not_wanted_push_away(searcher: Searcher) -> None:
    """The negative words' own best hit falls against the others."""
    plain = {hit.key: hit.score for hit in searcher.search("a gong").hits}
    away = {h.key: h.score for h in searcher.search(Question("a gong", without="piano")).hits}
    like = {hit.key: hit.score for hit in searcher.search("piano").hits}
    change = {key: away[key] - plain[key] for key in plain}
    assert max(like, key=like.__getitem__) != max(change, key=change.__getitem__)
    assert away != pytest.approx(plain)


def test_pages_follow_each_other(searcher: Searcher) -> None:
    """Hits that are passed over are those of the pages before."""
    for options in ({}, {"balance": 0.3}, {"unique": True}):
        whole = searcher.search(Question("a gong", **options)).hits
        pages = [
            searcher.search(Question("a gong", limit=1, offset=number, **options)).hits
            for number in range(4)
        ]
        assert [hit.key for page in pages for hit in page] == [hit.key for hit in whole]


def test_the_same_content_is_shown_once(
    index: Index, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    """Copies of a sound are one hit, the best of them, that names the others."""
    for name in ("a.ogg", "b.ogg"):
        shutil.copy(SOUNDS / "music/gong.ogg", tmp_path / name)
    (tmp_path / "b.json").write_text('{"title": "a gong"}')
    shutil.copy(SOUNDS / "music/piano.wav", tmp_path)
    generation = index.create(VERSION, tiny_encoder)
    syncer = Syncer(FolderStore(tmp_path), index, generation, tiny_encoder, Limits(60, 10**7))
    for key in ("a.ogg", "b.ogg", "piano.wav"):
        syncer.sync(key)
    searcher = Searcher(index, LoadedEncoders(_nowhere, {VERSION: tiny_encoder}))
    ranked = [hit.key for hit in searcher.search("a gong").hits if hit.key != "piano.wav"]
    hits = searcher.search(Question("a gong", unique=True)).hits
    assert len(hits) == 2
    copies = next(hit for hit in hits if hit.key != "piano.wav")
    assert (copies.key, *copies.copies) == tuple(ranked)


def test_only_what_passes_the_filter_is_found(searcher: Searcher) -> None:
    """A filter holds for every way to ask."""
    where = Filter(has_text=True, prefix="g")
    for question in (
        Question("a gong", where=where),
        Question("a gong", where=where, balance=0.1),
        Question(sound=SOUNDS / "music/gong.ogg", where=where),
        Question(like=_ids(searcher)["piano.wav"], where=where),
    ):
        assert [hit.key for hit in searcher.search(question).hits] == ["gong.ogg"]


def test_an_encoder_without_parts_says_so(index: Index, tiny_encoder: Encoder) -> None:
    """Mid fusion answers by words, sounds and items, but has no balance."""
    mid = Encoder.random(tiny_encoder.config.model_copy(update={"fusion": "mid"}), seed=0)
    _fill(index, VERSION, mid)
    searcher = Searcher(index, LoadedEncoders(_nowhere, {VERSION: mid}))
    hits = searcher.search(Question(sound=SOUNDS / "music/cowbell.flac", unique=True)).hits
    assert (hits[0].key, hits[0].audio) == ("cowbell.flac", None)
    assert hits[0].score == pytest.approx(1, abs=1e-4)
    with pytest.raises(QueryError, match="inseparably"):
        searcher.search(Question("a gong", balance=0.3))


def test_questions_that_wait_are_read_together(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a batch is read the texts of other threads gather, and each gets its own vector."""
    sizes, read = [], tiny_encoder.read

    def slowly(texts: list[str]) -> Any:
        sizes.append(len(texts))
        time.sleep(0.02)
        return read(texts)

    monkeypatch.setattr(tiny_encoder, "read", slowly)
    tower, texts = LoadedEncoder(tiny_encoder), [f"sound {number}" for number in range(40)]
    with ThreadPoolExecutor(40) as threads:
        vectors = list(threads.map(tower.read, texts))
    assert sum(sizes) == 40
    assert len(sizes) < 20
    for text, vector in zip(texts, vectors, strict=True):
        alone = read([text])[0]
        assert vector.tolist() == pytest.approx((alone / alone.norm()).tolist(), abs=1e-5)


def test_it_can_be_asked_from_an_event_loop(searcher: Searcher) -> None:
    """Many questions are under way at once, and the answers are those of the searcher."""
    asynchronous = AsyncSearcher(searcher)

    async def ask() -> list[Found]:
        return await asyncio.gather(*(asynchronous.search("a gong") for _ in range(8)))

    expected = [hit.key for hit in searcher.search("a gong").hits]
    for found in asyncio.run(ask()):
        assert [hit.key for hit in found.hits] == expected
    assert asyncio.run(asynchronous.embed("a gong")) == searcher.embed("a gong")


def test_items_are_told_and_counted(searcher: Searcher) -> None:
    """An item is had by its id, and how many are live."""
    id_ = _ids(searcher)["piano.wav"]
    assert searcher.item(id_).payload["key"] == "piano.wav"
    assert searcher.count() == (VERSION, 3)
    with pytest.raises(NotFound):
        searcher.item("6ba7b810-9dad-51d1-80b4-000000000000")


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


@pytest.fixture
def no_caching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every query resolve the alias."""
    monkeypatch.setattr("audiofuse.core.search.search.POLL_S", 0)


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
    index: Index, tiny_encoder: Encoder, other_encoder: Encoder
) -> None:
    """No query waits or fails for a switch that came before its encoder was there."""
    _fill(index, VERSION, tiny_encoder)
    new, go_on = _fill(index, OTHER, other_encoder), threading.Event()

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
    index: Index, encoders: dict[str, Encoder]
) -> None:
    """If what was searched is gone, the same query is answered by what is live now."""
    old, new = (_fill(index, version, encoder) for version, encoder in encoders.items())
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

    monkeypatch.setattr(searcher, "_wanted", wanted)
    monkeypatch.setattr("audiofuse.core.search.search.time.sleep", sleep)
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
    monkeypatch.setattr("audiofuse.core.search.search.open_index", lambda _: index)
    assert open_searcher(Settings()).loaded == {bundle.name, other.name}
