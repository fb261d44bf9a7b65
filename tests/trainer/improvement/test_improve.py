"""From an archive and its verdicts to a better encoder, or to the reason why there is none."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.scorecards import MAP
from audiofuse.core.model.config import TINY
from audiofuse.trainer.improvement.archive import Archive, Verdicts
from audiofuse.trainer.improvement.heads import VIEWS, heads
from audiofuse.trainer.improvement.improve import Outcome, improve, named_here
from audiofuse.trainer.improvement.judging import ASKED
from audiofuse.trainer.improvement.scores import SYSTEMS

Listener = Callable[..., Verdicts]
Improve = Callable[[Verdicts], Outcome]


def test_verdicts_that_agree_make_it_better(better: Outcome, encoder: Encoder) -> None:
    """What was sealed is answered better; only heads have changed, and scores mean other things."""
    assert better.judgement.is_better, better.judgement.refusals
    assert all(better.judgement.figures[ASKED][view].low > 0 for view in VIEWS)
    for scores, side in ((better.scores.old, "old"), (better.scores.new, "new")):
        for view, system in SYSTEMS.items():
            told = scores[-1].figures[system][MAP]
            figure = better.judgement.figures[ASKED][view]
            assert told.value == pytest.approx(getattr(figure, side))
            assert told.low <= told.value <= told.high
    assert better.encoder
    assert encoder.config.relevance
    assert better.encoder.config.relevance not in {None, encoder.config.relevance}
    assert "questions of those that were sealed" in better.told
    before, after = (each.model.state_dict() for each in (encoder, better.encoder))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        f"{head}.{part}"
        for head in ("audio_head", "text_tower.project")
        for part in ("weight", "bias")
    }


@pytest.mark.parametrize("seed", range(10))
def test_verdicts_by_chance_publish_nothing(
    seed: int, improved: Improve, listener: Listener
) -> None:
    """Whoever says anything at random changes no encoder."""
    outcome = improved(listener(seed, by_chance=True))
    assert not outcome.judgement.is_better
    assert outcome.encoder is None
    assert "do not agree" in outcome.judgement.refusals[0]


def test_a_tenth_of_wrong_verdicts_leaves_the_gain(improved: Improve, listener: Listener) -> None:
    """A listener errs now and then, and the encoder is better all the same."""
    outcome = improved(listener(1, wrong=0.1))
    assert outcome.judgement.is_better, outcome.judgement.refusals
    assert all(each.gain > 0 for each in outcome.judgement.figures[ASKED].values())


def test_what_is_too_little_is_refused(
    encoder: Encoder, archive_with: Callable[[Verdicts], Archive]
) -> None:
    """Few sounds, and sounds without any word, teach nothing; the reason is told."""
    archive = archive_with({})
    few = replace(archive, sounds=archive.sounds[:49])
    silent = [
        sound._replace(clip=replace(sound.clip, metadata=type(sound.clip.metadata)()))
        for sound in archive.sounds
    ]
    for each, why in ((few, "49 sounds"), (replace(archive, sounds=silent), "no sound has words")):
        outcome = improve(encoder, each, {}, lambda _done, _all: None)
        assert why in outcome.judgement.refusals[0]
        assert outcome.encoder is None


def test_an_encoder_that_fuses_frames_is_refused(
    archive_with: Callable[[Verdicts], Archive],
) -> None:
    """No index has frames, so that mid fusion is trained from sounds: what to do is told."""
    mid = Encoder.random(TINY.model_copy(update={"fusion": "mid"}), seed=0)
    with pytest.raises(ConfigurationError, match="audiofuse-train fit"):
        improve(mid, archive_with({}), {}, lambda _done, _all: None)


def test_an_improved_encoder_may_be_improved_again(better: Outcome, encoder: Encoder) -> None:
    """Heads of the new version are as many and of the same shapes as those of the one before."""
    assert better.encoder
    shapes = [[each.shape for each in heads(one.model)] for one in (encoder, better.encoder)]
    assert shapes[0] == shapes[1]


def test_general_sentences_are_about_the_tag_that_names_their_kind(
    archive_with: Callable[[Verdicts], Archive],
) -> None:
    """One of a kind's names is enough; what the archive has no name for is about nothing in it."""
    general = {"Sirens, horn": ["toot"], "Rain": ["drip"], "Zebra": ["hee"], "Cow": ["moo"]}
    found = named_here(archive_with({}), general)
    assert found == {"horn": ["toot"], "rain": ["drip"], "": ["hee", "moo"]}


def test_without_listeners_questions_no_calibration_is_claimed(
    improved: Improve, encoder: Encoder
) -> None:
    """What an encoder's scores meant before is not claimed of the new one; the card says why."""
    outcome = improved({})
    assert encoder.config.relevance
    assert outcome.encoder
    assert outcome.encoder.config.relevance is None
    assert "Not known: no listeners' questions" in outcome.told
