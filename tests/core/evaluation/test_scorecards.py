"""Scorecards: what a version scored is kept beside it, and compared with what others scored."""

import logging
from pathlib import Path

import pytest

from audiofuse.core.evaluation.scorecards import (
    MAP,
    MOST_SCORES,
    Figure,
    Score,
    Scorecard,
    compared,
    data_hash,
    open_scorecards,
)
from audiofuse.core.settings import Settings


def score(data: str, value: float = 0.5) -> Score:
    """Return what came of some questions."""
    figure = Figure(value=value, low=value - 0.1, high=value + 0.1)
    figures = {"hybrid": {MAP: figure}}
    return Score(asked=f"val of {data}", data=data, queries=9, sounds=8, figures=figures)


def test_scores_are_kept_by_version(tmp_path: Path) -> None:
    """Whoever opens the cards finds them; the same questions asked again replace what was said."""
    settings = Settings(registry=str(tmp_path))
    cards = open_scorecards(settings)
    assert cards.of("a-1") == Scorecard(version="a-1")
    first, other, again = score("d"), score("e"), score("d", 0.7)
    cards.add("a-1", [first, other])
    assert open_scorecards(settings).of("a-1").scores == (first, other)
    cards.add("a-1", [again])
    assert cards.of("a-1").scores == (other, again)
    assert cards.of("b-2").scores == ()


def test_a_card_is_bounded() -> None:
    """The oldest scores make room for new ones."""
    card = Scorecard(version="a-1")
    for number in range(MOST_SCORES + 3):
        card = card.with_scores([score(str(number))])
    assert [each.data for each in card.scores] == [str(n) for n in range(3, MOST_SCORES + 3)]


def test_a_card_that_somebody_broke_is_empty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and written anew by the next score."""
    cards = open_scorecards(Settings(registry=str(tmp_path)))
    (tmp_path / "scorecards").mkdir()
    (tmp_path / "scorecards" / "a-1.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert cards.of("a-1").scores == ()
    assert "the scorecard of a-1" in caplog.text
    cards.add("a-1", [score("d")])
    assert len(cards.of("a-1").scores) == 1


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"a-1": "xyz", "b-2": "yxw"}, {"a-1": "y", "b-2": "y"}),
        ({"a-1": "xy", "b-2": "wv"}, {}),
        ({"a-1": "xy", "b-2": ""}, {"a-1": "y"}),
        ({"a-1": "", "b-2": ""}, {}),
    ],
)
def test_versions_compare_by_the_newest_questions_that_both_were_asked(
    asked: dict[str, str], found: dict[str, str]
) -> None:
    """Figures of different questions say nothing beside each other; who has none is left out."""
    cards = [Scorecard(version=v, scores=tuple(map(score, data))) for v, data in asked.items()]
    assert {version: each.data for version, each in compared(cards).items()} == found


def test_the_hash_tells_what_is_asked_apart() -> None:
    """Other questions, and the same in another order, are other data."""
    hashes = {data_hash(facts) for facts in ([("a", 1)], [("a", 2)], [("a", 1), "b"], ["b"], [])}
    assert len(hashes) == 5
    assert data_hash([("a", 1)]) == data_hash(iter([("a", 1)]))
