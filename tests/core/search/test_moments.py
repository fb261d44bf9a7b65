"""Recordings are found by their moments as well, on an index whose vectors are drawn by chance."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError, NotFound, QueryError
from audiofuse.core.index.index import Generation, Index, Point
from audiofuse.core.items import moment_id
from audiofuse.core.model.config import MomentShape
from audiofuse.core.query import Filter, Question
from audiofuse.core.search import ranking, recordings
from audiofuse.core.search.hits import Hit
from audiofuse.core.search.loaded import LoadedEncoder, LoadedEncoders
from audiofuse.core.search.search import Searcher

VERSION, STATE = "tiny-000000", "as it is"
WORDS = "a gong"
S = 5.0  # length of a window


class Sounds:
    """An index of short sounds and long recordings, and a searcher over it."""

    def __init__(self, index: Index, encoder: Encoder, seed: int = 0) -> None:
        self.index, self.encoder = index, encoder
        self.random = np.random.default_rng(seed)
        self.generation: Generation = index.create(VERSION, encoder)
        self.query = LoadedEncoder(encoder).encode_text(WORDS)
        self.searcher = Searcher(index, LoadedEncoders(_nowhere, {VERSION: encoder}))
        self.scores: dict[str, float] = {}  # of items
        self.windows: dict[str, list[float]] = {}  # of windows

    def add(self, windows: int, **payload: Any) -> str:
        """Add a sound with so many moments; return its id."""
        id_ = str(UUID(bytes=self.random.bytes(16), version=5))
        facts = {
            "bucket": "b", "key": f"{id_}.wav", "duration_s": S * max(windows, 1), "labels": [],
            "content_hash": id_, "moments": windows,
            "moments_state": STATE if windows else "",
        } | payload  # fmt: skip
        words = self.random.standard_normal(self.encoder.dim)
        item, self.scores[id_] = self._point(id_, facts, words)
        made = []
        for number in range(windows):
            at = {"item": id_, "number": number, "state": STATE}
            at |= {"start_s": S * number, "end_s": S * (number + 1)}
            point, score = self._point(moment_id(id_, number), facts | at, words)
            made.append(point)
            self.windows.setdefault(id_, []).append(score)
        self.index.upsert(self.generation, [item])
        if made:
            self.index.upsert(self.generation.moments, made)
        return id_

    def _point(self, id_: str, payload: dict[str, Any], words: np.ndarray) -> tuple[Point, float]:
        """Return a sum of a sound by chance and of words, and its score."""
        audio = np.abs(self.random.standard_normal(self.encoder.audio_dim)).astype(np.float32)
        projected = self.encoder.project_audio(audio[None])
        assert projected is not None
        vector = projected[0] + words
        norm = float(np.linalg.norm(vector))
        vector /= norm
        point = Point(id_, payload | {"item_norm": norm}, vector.tolist(), audio.tolist())
        return point, float(vector @ self.query)

    def expected(self) -> list[str]:
        """Return all ids, best first, by the better of item and best window."""
        return sorted(self.scores, key=lambda id_: -self.best(id_))

    def best(self, id_: str) -> float:
        """Return the better of an item's score and that of its best window."""
        return max([self.scores[id_], *self.windows.get(id_, [])])

    def find(self, **options: Any) -> list[Hit]:
        """Ask by words."""
        return self.searcher.search(Question(WORDS, **options)).hits


def _nowhere(version: str) -> Encoder:
    raise ConfigurationError(f"no encoder {version} is published")


@pytest.fixture
def sounds(index: Index, tiny_encoder: Encoder) -> Sounds:
    """Return twelve short sounds, three recordings, and one that has far more moments than all."""
    sounds = Sounds(index, tiny_encoder)
    for windows in [0] * 12 + [2, 3, 4, 60]:
        sounds.add(windows)
    return sounds


def _ids(hits: Iterable[Hit]) -> list[str]:
    return [hit.id for hit in hits]


def test_a_recording_is_ranked_by_the_better_of_item_and_moment(sounds: Sounds) -> None:
    """All recordings and sounds are in the order of their best, whichever gave it."""
    hits = sounds.find(limit=100)
    assert _ids(hits) == sounds.expected()
    for hit in hits:
        assert hit.score == pytest.approx(sounds.best(hit.id), abs=1e-5)
        assert hit.audio + hit.metadata == pytest.approx(hit.score)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_pages_are_parts_of_one_ranking(sounds: Sounds, size: int) -> None:
    """Page by page everything comes once, in the order of one large page."""
    pages = [sounds.find(limit=size, offset=offset) for offset in range(0, 18, size)]
    assert [id_ for page in pages for id_ in _ids(page)] == sounds.expected()


def test_near_and_far_pages_are_found_alike(
    sounds: Sounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all is fetched at once or only what is shown, hits are the same, and so are moments.

    At once it takes three requests: items, moments, and the items of moments.
    """
    asked: list[str] = []
    for name in ("search", "get", "nearest_moments"):
        method = getattr(sounds.index, name)
        counted = partial(_counted, name, method, asked)
        monkeypatch.setattr(sounds.index, name, counted)
    near = sounds.find(limit=5)
    assert sorted(asked) == ["get", "nearest_moments", "search"]
    monkeypatch.setattr(ranking, "AT_ONCE", 0)
    far = sounds.find(limit=5)
    assert [_facts(hit) for hit in far] == [_facts(hit) for hit in near]


def test_what_goes_while_it_is_asked_for_leaves_no_gap(
    sounds: Sounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording that is deleted between two requests of a question makes no page shorter."""
    gone = next(id_ for id_ in sounds.expected() if sounds.best(id_) > sounds.scores[id_])
    get = sounds.index.get

    def get_later(generation: Generation, ids: Iterable[str], **options: Any) -> dict[str, Point]:
        if options.get("vectors"):  # the last request
            sounds.index.remove(sounds.generation, [gone])
            sounds.index.remove_moments(sounds.generation, gone)
        return get(generation, ids, **options)

    monkeypatch.setattr(sounds.index, "get", get_later)
    monkeypatch.setattr(ranking, "AT_ONCE", 0)
    hits = sounds.find(limit=10)
    assert _ids(hits) == [id_ for id_ in sounds.expected() if id_ != gone][:10]


def _counted(
    name: str, method: Callable[..., Any], asked: list[str], *told: Any, **how: Any
) -> Any:
    asked.append(name)
    return method(*told, **how)


def _facts(hit: Hit) -> tuple[Any, ...]:
    places = [(each.start_s, each.end_s) for each in hit.moments]
    return hit.id, hit.payload, places, round(hit.score, 5), round(hit.audio or 0, 5)


def test_a_hit_names_its_moments(sounds: Sounds) -> None:
    """At most three, best first, the first being what the score is of; none of a short sound."""
    for hit in sounds.find(limit=100):
        windows = sounds.windows.get(hit.id)
        if not windows:
            assert hit.moments == ()
            continue
        first = hit.moments[0]
        assert 1 <= len(hit.moments) <= 3
        assert first.score == pytest.approx(max(windows), abs=1e-5)
        assert first.start_s <= S * int(np.argmax(windows)) < first.end_s
        scores = [moment.score for moment in hit.moments]
        assert scores == sorted(scores, reverse=True)


def test_windows_are_joined_as_the_live_bundle_says(index: Index, tiny_encoder: Encoder) -> None:
    """With a slack that every window has, a recording is one moment from its start to its end."""
    config = tiny_encoder.config.model_copy(update={"moments": MomentShape(slack=2)})
    sounds = Sounds(index, Encoder.random(config, seed=0))
    sounds.add(3)
    (hit,) = sounds.find()
    assert [(moment.start_s, moment.end_s) for moment in hit.moments] == [(0, 3 * S)]


def test_the_parts_of_a_score_are_those_of_its_moment(sounds: Sounds) -> None:
    """What audio gave to a hit is what the audio of the window that was nearest gave."""
    found = sounds.find(limit=100)
    hits = [hit for hit in found if sounds.best(hit.id) > sounds.scores[hit.id]]
    assert hits
    for hit in hits:
        id_ = moment_id(hit.id, int(np.argmax(sounds.windows[hit.id])))
        window = sounds.index.get(sounds.generation.moments, [id_], vectors=True)[id_]
        audio = sounds.encoder.project_audio(np.array([window.audio], np.float32))
        assert audio is not None
        assert hit.audio == pytest.approx(
            float(audio[0] @ sounds.query) / window.payload["item_norm"], abs=1e-5
        )


def _change(sounds: Sounds, id_: str, **payload: Any) -> None:
    (point,) = sounds.index.get(sounds.generation, [id_], vectors=True).values()
    changed = Point(id_, dict(point.payload) | payload, point.item, point.audio)
    sounds.index.upsert(sounds.generation, [changed])


@pytest.mark.parametrize(
    "change", [{"moments_state": "another"}, {"moments": 0}, {"moments_state": None}]
)
def test_moments_that_their_item_does_not_name_are_not_shown(
    sounds: Sounds, change: dict[str, Any]
) -> None:
    """While moments are written or removed, recordings are found as if they had none."""
    for id_ in sounds.windows:
        _change(sounds, id_, **change)
    sounds.windows.clear()
    hits = sounds.find(limit=100)
    assert _ids(hits) == sounds.expected()
    assert not any(hit.moments for hit in hits)
    assert _ids(sounds.find(limit=3)) == sounds.expected()[:3]


def test_moments_beyond_the_count_are_not_shown(sounds: Sounds) -> None:
    """A recording that became shorter is found by what is left of it only."""
    id_ = max(sounds.windows, key=lambda each: len(sounds.windows[each]))
    _change(sounds, id_, moments=1)
    (hit,) = [hit for hit in sounds.find(limit=100) if hit.id == id_]
    assert all(moment.end_s <= S for moment in hit.moments)


def test_moments_of_an_item_that_is_gone_are_not_shown(sounds: Sounds) -> None:
    """What a crash left of a deleted recording finds nothing."""
    long = list(sounds.windows)
    sounds.index.remove(sounds.generation, long)
    assert _ids(sounds.find(limit=100)) == [id_ for id_ in sounds.expected() if id_ not in long]


def test_filters_hold_for_moments(sounds: Sounds) -> None:
    """A recording is found by its moments only if it passes what was asked."""
    wanted = sounds.add(5, labels=["Dog"])
    sounds.add(0, labels=["Cat"])
    assert _ids(sounds.find(where=Filter(labels=("Dog",)))) == [wanted]
    assert wanted not in _ids(sounds.find(limit=100, where=Filter(besides=(wanted,))))


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
def test_a_balance_weighs_moments_as_it_weighs_items(sounds: Sounds, balance: float) -> None:
    """Each recording comes once, best first, and its parts add up, page by page."""
    hits = sounds.find(limit=100, balance=balance)
    assert sorted(_ids(hits)) == sorted(sounds.scores)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert all(hit.audio + hit.metadata == pytest.approx(hit.score) for hit in hits)
    assert _ids(sounds.find(limit=5, offset=5, balance=balance)) == _ids(hits)[5:10]


def test_the_same_content_is_shown_once(sounds: Sounds) -> None:
    """Copies of a recording are one hit, with the other's key, though both have moments."""
    twins = [sounds.add(3, content_hash="same") for _ in range(2)]
    hits = [hit for hit in sounds.find(limit=100, unique=True) if hit.id in twins]
    ((one,), (copy,)) = hits, hits[0].copies
    assert {f"{one.id}.wav", copy} == {f"{id_}.wav" for id_ in twins}


def test_moments_can_be_listed_instead_of_recordings(sounds: Sounds) -> None:
    """Each hit is one moment with its own score, best first; a short sound is one itself."""
    hits = sounds.find(limit=40, moments=True)
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    long = [hit for hit in hits if hit.id in sounds.windows]
    assert (
        len({(hit.id, hit.moments[0].start_s) for hit in long}) == len(long) > len(sounds.windows)
    )
    assert all(hit.score == hit.moments[0].score for hit in long)
    assert all(hit.audio + hit.metadata == pytest.approx(hit.score) for hit in hits)
    assert {
        hit.id for hit in hits if not hit.moments
    } == sounds.scores.keys() - sounds.windows.keys()
    later = sounds.find(limit=4, offset=3, moments=True)
    assert [(hit.id, hit.moments[:1] and hit.moments[0].start_s) for hit in later] == [
        (hit.id, hit.moments[:1] and hit.moments[0].start_s) for hit in hits[3:7]
    ]


@pytest.mark.parametrize("how", [{}, {"unique": True}, {"balance": 0.3}])
def test_pages_of_moments_are_parts_of_one_list(sounds: Sounds, how: dict[str, Any]) -> None:
    """Page by page every moment comes once, in the order of one large page."""
    found = sounds.find(limit=100, moments=True, **how)
    whole = [(hit.id, hit.moments and hit.moments[0].start_s) for hit in found]
    pages = [
        sounds.find(limit=4, offset=offset, moments=True, **how)
        for offset in range(0, len(whole) + 4, 4)
    ]
    paged = [(hit.id, hit.moments and hit.moments[0].start_s) for page in pages for hit in page]
    assert paged == whole


def test_more_can_be_found_that_is_like_a_moment(sounds: Sounds) -> None:
    """The query is the vector of the window in which the second lies, of an item its own."""
    id_ = max(sounds.windows, key=lambda each: len(sounds.windows[each]))
    for at_s, number in ((0.0, 0), (4.9, 0), (5.0, 1), (299.0, 59), (300.0, 59)):
        twin_of = moment_id(id_, number)
        window = sounds.index.get(sounds.generation.moments, [twin_of], vectors=True)[twin_of]
        best = sounds.searcher.search(Question(like=id_, at_s=at_s, limit=100)).hits
        assert id_ not in _ids(best)
        (point,) = sounds.index.get(sounds.generation, [best[-1].id], vectors=True).values()
        cosine = float(np.array(point.item) @ np.array(window.item))
        assert best[-1].score >= cosine - 1e-5
        if not best[-1].moments:
            assert best[-1].score == pytest.approx(cosine, abs=1e-5)
    with pytest.raises(QueryError, match="is 300"):
        sounds.searcher.search(Question(like=id_, at_s=301.0))


def test_a_timeline_has_the_score_of_every_window(sounds: Sounds) -> None:
    """In the order of time; of a short sound there is one, the whole; of no item there is none."""
    for id_, item_score in sounds.scores.items():
        found = sounds.searcher.timeline(id_, WORDS)
        scores = sounds.windows.get(id_, [item_score])
        assert [each.score for each in found.windows] == pytest.approx(scores, abs=1e-5)
        spans = [(each.start_s, each.end_s) for each in found.windows]
        assert spans == [(S * number, S * (number + 1)) for number in range(len(scores))]
        assert found.encoder == VERSION
    with pytest.raises(NotFound):
        sounds.searcher.timeline(str(uuid4()), WORDS)


def test_an_index_without_moments_is_asked_for_none(
    index: Index, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody has long recordings, that is looked at now and then and costs nothing else."""
    sounds = Sounds(index, tiny_encoder)
    for _ in range(3):
        sounds.add(0)
    looks = []
    health = index.health
    monkeypatch.setattr(index, "health", lambda each: looks.append(each) or health(each))
    monkeypatch.setattr(index, "nearest_moments", None)
    for _ in range(20):
        assert _ids(sounds.find()) == sounds.expected()
    assert looks == [sounds.generation.moments]
    assert _ids(sounds.find(moments=True)) == sounds.expected()


def test_the_first_moments_are_found_soon(
    sounds: Sounds, index: Index, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who saw that there were none looks again."""
    del sounds
    fresh = Sounds(Index(index._client, "fresh"), tiny_encoder)
    fresh.add(0)
    fresh.find()
    id_ = fresh.add(2)
    monkeypatch.setattr(recordings, "LOOK_S", 0.0)
    time.sleep(0.001)
    (hit,) = [hit for hit in fresh.find() if hit.id == id_]
    assert hit.moments


def test_a_generation_of_an_older_release_is_searched_as_ever(
    index: Index, tiny_encoder: Encoder
) -> None:
    """Without a collection of moments items are found, nothing else is asked."""
    sounds = Sounds(index, tiny_encoder)
    sounds.add(0)
    index._client.delete_collection(sounds.generation.moments.collection)
    assert _ids(sounds.find()) == sounds.expected()
