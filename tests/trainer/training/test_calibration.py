"""What scores mean: curves that are fitted on judged hits, and how far off they are on others."""

from pathlib import Path

import numpy as np
import pytest

from audiofuse.core.encoder.embeddings import AudioEmbedding
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import VAL, Clip, Query
from audiofuse.core.evaluation.evaluation import Gallery
from audiofuse.core.items import Metadata
from audiofuse.core.model.config import EncoderConfig
from audiofuse.core.model.relevance import Curve
from audiofuse.trainer.calibrate import with_section
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.training import calibration
from audiofuse.trainer.training.calibration import (
    HEADING,
    MISTAKEN,
    Hits,
    Judged,
    after_training,
    calibrated,
    expected_error,
    fit_relevance,
    unbiased_error,
)

TRUE = {True: Curve(slope=9, offset=-5), False: Curve(slope=5, offset=-2)}


def _hits(seed: int, count: int = 4000) -> Hits:
    """Draw hits whose truth follows ``TRUE``, of ten to a question."""
    chance = np.random.default_rng(seed)
    score, worded = chance.uniform(0, 1, count), chance.random(count) < 0.5
    likely = [TRUE[bool(w)].at(float(s)) for s, w in zip(score, worded, strict=True)]
    everywhere = np.ones(count, bool)
    return Hits(
        score, worded, chance.random(count) < likely, np.arange(count) // 10, everywhere, everywhere
    )


def test_the_curves_are_those_that_the_hits_follow() -> None:
    """One of hits with words and one of those without; on other hits they are hardly off."""
    relevance, others = fit_relevance(_hits(0)), _hits(1)
    for fitted, true in ((relevance.worded, TRUE[True]), (relevance.wordless, TRUE[False])):
        assert [fitted.at(s) for s in (0.2, 0.8)] == pytest.approx(
            [true.at(s) for s in (0.2, 0.8)], abs=0.05
        )
    assert expected_error(others.told(relevance), others.meant, others.weight) < 0.03


def test_of_few_questions_the_error_is_told_without_its_bias() -> None:
    """Right curves look wrong on 40 questions, by chance alone; wrong ones are as wrong as before.

    Of each question all hits are meant or none, so that it is questions that chance is about.
    """
    chance = np.random.default_rng(0)
    told = np.repeat(chance.uniform(0, 1, 40), 10)
    everywhere = np.ones(400, bool)
    draws = [np.repeat(chance.random(40), 10) < told for _ in range(20)]
    plain, unbiased, wrong = [], [], []
    for meant in draws:
        hits = Hits(told, everywhere, meant, np.arange(400) // 10, everywhere, everywhere)
        plain.append(expected_error(told, meant, hits.weight))
        unbiased.append(unbiased_error(told, hits))
        wrong.append(unbiased_error(1 - told, hits))
    assert np.mean(plain) > 0.15
    assert np.mean(unbiased) < 0.8 * np.mean(plain)
    assert np.mean(wrong) == pytest.approx(0.5, abs=0.05)


def test_few_answered_questions_are_told_nothing() -> None:
    """What the best hit must reach is such that most questions with an answer reach it."""
    hits = _hits(0)
    relevance = fit_relevance(hits)
    best = hits.told(relevance).reshape(-1, 10).max(1)
    assert (best < relevance.nothing_below).mean() == pytest.approx(MISTAKEN, abs=0.01)


def test_the_error_is_the_mean_distance_within_bins() -> None:
    """Half of the hits told .25 of which all are meant, half told .9 of which nine of ten are."""
    told = np.array([0.25] * 10 + [0.9] * 10)
    meant = np.array([True] * 10 + [True] * 9 + [False])
    assert expected_error(told, meant, np.ones(20)) == pytest.approx(0.375)


def test_scores_that_say_nothing_become_a_constant() -> None:
    """Where higher scores are meant less often, no hit is told to be likelier than another."""
    hits = _hits(0)
    turned = Hits(1 - hits.score, *(getattr(hits, n) for n in list(Hits.__annotations__)[1:]))
    relevance = fit_relevance(turned)
    assert relevance.worded.slope == 0
    assert relevance.worded.at(0.3) == pytest.approx(hits.meant[hits.worded].mean(), abs=0.01)


def _clips(count: int) -> list[Clip]:
    names = [f"{number:b}".replace("0", "dog ").replace("1", "cat ") for number in range(count)]
    return [Clip(Path(n), n, VAL, Metadata(title=n), queries=(Query(n, "", n),)) for n in names]


def test_an_encoder_is_calibrated_by_some_questions_and_checked_by_others(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps its weights, its configuration tells the curves, and the figures are shares."""
    monkeypatch.setattr(calibration, "FEWEST", 5)  # an encoder of chance finds few
    chance = np.random.default_rng(0)
    pooled = chance.normal(size=(60, 1, tiny_encoder.audio_dim)).astype(np.float32)
    clips = _clips(60)
    gallery = Gallery(clips, [AudioEmbedding(each) for each in pooled])
    queries = [query for clip in clips for query in clip.queries]
    encoder, found = calibrated(
        tiny_encoder, Judged(gallery, queries[:40]), Judged(gallery, queries[40:])
    )
    assert (encoder.runtime, encoder.config.relevance) == (tiny_encoder.runtime, found.relevance)
    assert tiny_encoder.config.relevance is None
    assert EncoderConfig.model_validate_json(encoder.config.model_dump_json()) == encoder.config
    assert found.questions == 20
    for share in (found.error, found.error_answered, found.told_nothing, found.missed):
        assert 0 <= share <= 1
    told = found.card("some", "others")
    assert with_section(with_section("# Card\n", told), told) == f"# Card\n\n{told}"


def test_too_few_questions_give_no_calibration(tiny_encoder: Encoder) -> None:
    """None is claimed then, not even that of what training began with, and the card says why."""
    with pytest.raises(ConfigurationError, match="too few hits"):
        fit_relevance(_hits(0, count=50))
    start = tiny_encoder.with_relevance(fit_relevance(_hits(0)))
    encoder, told = after_training(start, Corpus([], {}))
    assert encoder.config.relevance is None
    assert told.startswith(HEADING)
    assert "no questions" in told
