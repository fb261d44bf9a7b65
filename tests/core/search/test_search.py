"""Searching: ranking, scores and their parts, by words, sounds and items."""

import asyncio
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_encoder import LocalEncoder

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.encoder.embeddings import unit
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError, NotFound, QueryError, Rejected
from audiofuse.core.index.index import Generation, Index
from audiofuse.core.query import Filter, Question
from audiofuse.core.search.hits import Found
from audiofuse.core.search.loaded import LoadedEncoder, LoadedEncoders
from audiofuse.core.search.search import AWAY_FROM, AsyncSearcher, Searcher
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
VERSION, OTHER = "tiny-000000", "other-111111"
Fill = Callable[[Index, str, Encoder], Generation]


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
    from audiofuse.core.items import Metadata

    hit = next(h for h in searcher.search(Question("a gong", limit=3)).hits if h.key == "gong.ogg")
    sidecar = Metadata.from_json((SOUNDS / "music/gong.json").read_bytes())
    query = unit(tiny_encoder.encode_text(["a gong"]))[0]
    words = tiny_encoder.encode_text([sidecar.text])[0] @ query / hit.payload["item_norm"]
    assert hit.metadata == pytest.approx(float(words), abs=1e-5)


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
    sound = SOUNDS / "music/piano.wav"
    hits = searcher.search(Question("a gong", sound=sound)).hits
    tower = LoadedEncoder(tiny_encoder)
    with open_recording(sound, 60) as recording:
        query = tower.encode_text("a gong") + tower.encode_audio(recording.windows())
    for hit in hits:
        item = np.array(searcher._index.get(*_where(searcher, hit.id), vectors=True)[hit.id].item)
        assert hit.score == pytest.approx(float(item @ query / np.linalg.norm(query)), abs=1e-5)


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
        expected = np.stack([item, audio]) @ query / np.linalg.norm(item)
        assert (hits[key].score, hits[key].audio) == pytest.approx(expected.tolist(), abs=1e-4)


def test_words_that_are_not_wanted_push_away(searcher: Searcher, tiny_encoder: Encoder) -> None:
    """Each score falls by half of how near the item is to what is not wanted."""
    encode = LoadedEncoder(tiny_encoder).encode_text
    length = float(np.linalg.norm(encode("a gong") - AWAY_FROM * encode("piano")))
    plain = {hit.key: hit.score for hit in searcher.search("a gong").hits}
    away = {h.key: h.score for h in searcher.search(Question("a gong", without="piano")).hits}
    like = {hit.key: hit.score for hit in searcher.search("piano").hits}
    expected = {key: (plain[key] - AWAY_FROM * like[key]) / length for key in plain}
    assert away == pytest.approx(expected, abs=1e-4)


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
    syncer = Syncer(
        BucketSide(FolderStore(tmp_path), Limits(60, 10**7)),
        IndexSide(index, generation),
        LocalEncoder(tiny_encoder),
    )
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


def test_an_encoder_without_parts_says_so(index: Index, tiny_encoder: Encoder, fill: Fill) -> None:
    """Mid fusion answers by words, sounds and items, but has no balance."""
    mid = Encoder.random(tiny_encoder.config.model_copy(update={"fusion": "mid"}), seed=0)
    fill(index, VERSION, mid)
    searcher = Searcher(index, LoadedEncoders(_nowhere, {VERSION: mid}))
    hits = searcher.search(Question(sound=SOUNDS / "music/cowbell.flac", unique=True)).hits
    assert (hits[0].key, hits[0].audio) == ("cowbell.flac", None)
    assert hits[0].score == pytest.approx(1, abs=1e-4)
    with pytest.raises(QueryError, match="inseparably"):
        searcher.search(Question("a gong", balance=0.3))


def test_texts_that_wait_are_one_batch(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a batch is encoded the texts of other threads gather, and each gets its own vector."""
    sizes, encode_text = [], tiny_encoder.encode_text

    def slowly(texts: list[str]) -> Any:
        sizes.append(len(texts))
        time.sleep(0.02)
        return encode_text(texts)

    monkeypatch.setattr(tiny_encoder, "encode_text", slowly)
    encoder, texts = LoadedEncoder(tiny_encoder), [f"sound {number}" for number in range(40)]
    with ThreadPoolExecutor(40) as threads:
        vectors = list(threads.map(encoder.encode_text, texts))
    assert sum(sizes) == 40
    assert len(sizes) < 20
    for text, vector in zip(texts, vectors, strict=True):
        alone = encode_text([text])[0]
        assert vector.tolist() == pytest.approx(unit(alone).tolist(), abs=1e-5)


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


def test_hits_tell_what_else_a_sidecar_says_on_demand(searcher: Searcher) -> None:
    """It may be as long as its sidecar, so only who asks for it gets it."""
    assert "extra" not in searcher.search("a gong").hits[0].payload
    assert "extra" in searcher.search(Question("a gong", extra=True)).hits[0].payload
