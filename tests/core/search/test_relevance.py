"""How probable hits are: known where the encoder has a calibration, and filtered by."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import QueryError
from audiofuse.core.index.index import Generation, Index
from audiofuse.core.model.relevance import Curve, Relevance
from audiofuse.core.query import Question
from audiofuse.core.search.hits import Hit
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.relevance import judged
from audiofuse.core.search.search import Searcher

VERSION = "tiny-000000"
CALIBRATION = Relevance(
    worded=Curve(slope=4, offset=-1), wordless=Curve(slope=2, offset=1), nothing_below=0.5
)
Fill = Callable[[Index, str, Encoder], Generation]


@pytest.fixture
def searching(index: Index, tiny_encoder: Encoder, fill: Fill) -> Callable[[Relevance], Searcher]:
    """Return what gives a searcher of three sounds whose encoder has a calibration."""
    fill(index, VERSION, tiny_encoder)

    def searcher(relevance: Relevance) -> Searcher:
        loaded = {VERSION: tiny_encoder.with_relevance(relevance)}
        return Searcher(index, LoadedEncoders(lambda _: tiny_encoder, loaded))

    return searcher


def test_each_hit_tells_how_probable_it_is(searching: Callable[[Relevance], Searcher]) -> None:
    """By its score, and by the curve of sounds with words or of those without."""
    hits = searching(CALIBRATION).search("a gong").hits
    assert len(hits) == 3
    for hit in hits:
        worded = hit.payload["has_text"] == "yes"
        assert hit.relevance == CALIBRATION.of(hit.score, has_words=worded)
    assert {hit.payload["has_text"] for hit in hits} == {"yes", "no"}


def test_only_probable_hits_are_found_page_by_page(
    searching: Callable[[Relevance], Searcher],
) -> None:
    """What is less probable is left out before pages are cut, so that no page has a gap."""
    searcher = searching(CALIBRATION)
    values = {hit.key: hit.relevance or 0 for hit in searcher.search("a gong").hits}
    least = sorted(values.values())[1]
    first, second, none = (
        searcher.search(Question("a gong", min_relevance=least, limit=1, offset=offset)).hits
        for offset in range(3)
    )
    assert {hit.key for hit in first + second} == {k for k, v in values.items() if v >= least}
    assert not none


def test_a_question_that_nothing_answers_is_told_apart(
    searching: Callable[[Relevance], Searcher],
) -> None:
    """It is one whose best hit is too improbable; known on its first page, and by words alone."""
    answered = searching(CALIBRATION.model_copy(update={"nothing_below": 0.0}))
    unanswered = searching(CALIBRATION.model_copy(update={"nothing_below": 1.0}))
    assert answered.search("a gong").nothing is False
    found = unanswered.search("a gong")
    assert found.nothing is True
    assert len(found.hits) == 3
    assert unanswered.search(Question("a gong", min_relevance=0.999)).hits == []
    assert unanswered.search(Question("a gong", offset=1)).nothing is None
    other = unanswered.search(Question("a gong", without="an owl"))
    assert other.nothing is None
    assert {hit.relevance for hit in other.hits} == {None}


def test_of_long_recordings_less_is_claimed() -> None:
    """Words that are about something else make none improbable, nor does a faint event."""
    payload = {"key": "a.wav", "has_text": "yes"}
    short = Hit("1", "a.wav", 0.2, 0.1, 0.1, payload)
    long = replace(short, payload=payload | {"moments": 13})
    unanswered = CALIBRATION.model_copy(update={"nothing_below": 1.0})
    (told,), nothing = judged([short], Question("a"), unanswered)
    assert (told.relevance, nothing) == (CALIBRATION.worded.at(0.2), True)
    (told,), nothing = judged([long], Question("a"), unanswered)
    assert (told.relevance, nothing) == (CALIBRATION.wordless.at(0.2), None)
    assert judged([long], Question("a"), CALIBRATION)[1] is False


def test_without_a_calibration_nothing_is_claimed(searcher: Searcher) -> None:
    """No hit of such an encoder is told to be probable, and to ask for probable ones is refused."""
    found = searcher.search("a gong")
    assert {hit.relevance for hit in found.hits} == {None}
    assert found.nothing is None
    with pytest.raises(QueryError, match="no calibration"):
        searcher.search(Question("a gong", min_relevance=0.5))


def test_a_curve_never_falls_and_stays_a_probability() -> None:
    """Whatever the score: also where an exponential would overflow."""
    curve = Curve(slope=1e6, offset=-1)
    assert [curve.at(score) for score in (-1, 0.5, 1)] == [0, 1, 1]
    assert CALIBRATION.worded.at(0.2) < CALIBRATION.worded.at(0.3)
