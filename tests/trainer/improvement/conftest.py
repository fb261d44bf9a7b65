"""An archive in small: kinds of sounds that a random encoder cannot tell, and a listener."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.evaluation.clips import Clip, clip_of
from audiofuse.core.items import Metadata
from audiofuse.core.model.config import TINY
from audiofuse.core.model.relevance import Curve, Relevance
from audiofuse.trainer.improvement import improve as improving
from audiofuse.trainer.improvement import judging, teaching
from audiofuse.trainer.improvement.archive import Archive, Sound, Verdicts
from audiofuse.trainer.improvement.improve import Outcome, improve

KINDS = ("owl", "bell", "rain", "motor", "horn", "surf")
WORDINGS = ("{0} {0}", "my {0}", "{0} at 5", "{0} far", "an old {0}", "{0} i made", "{0} 77")
SOUNDS = 15  # of each kind

GENERAL = {"Owl": ["hoo hoo"], "Zebra, donkey": ["hee haw"]}

Listener = Callable[..., Verdicts]
Improve = Callable[[Verdicts], Outcome]


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """Return a tiny, calibrated encoder, to whose text tower other words are other texts."""
    bert = TINY.text.bert | {"hidden_size": 48, "intermediate_size": 48}
    text = TINY.text.model_copy(update={"bert": bert, "pooling": "mean"})
    curve = Curve(slope=1.0, offset=0.0)
    relevance = Relevance(worded=curve, wordless=curve, nothing_below=0.1)
    shape = TINY.model_copy(update={"dim": 40, "text": text})
    return Encoder.random(shape, seed=0).with_relevance(relevance)


@pytest.fixture(scope="session")
def sounds(encoder: Encoder) -> list[Sound]:
    """Return sounds whose audio vectors tell their kinds, tagged by these."""
    chance = np.random.default_rng(0)
    places = chance.normal(size=(len(KINDS), encoder.audio_dim))
    return [
        Sound(
            f"{kind}-{number}",
            "e",
            _clip(kind, number),
            (place + chance.normal(size=place.shape) / 2).astype(np.float32),
        )
        for kind, place in zip(KINDS, places, strict=True)
        for number in range(SOUNDS)
    ]


def _clip(kind: str, number: int) -> Clip:
    folder = "near" if number % 2 else "far"
    name = f"{kind}-{number}"
    clip = clip_of(Path(folder, name), name, Metadata(title=str(number), keywords=(kind,)))
    return replace(clip, collection=folder)


@pytest.fixture(scope="session")
def listener(sounds: list[Sound]) -> Listener:
    """Return who asks for each kind in several wordings, and judges four sounds of each answer.

    ``wrong`` is the share of verdicts that are the other way round; ``by_chance`` all are given
    by chance.
    """

    def judge(seed: int, wrong: float = 0.0, *, by_chance: bool = False) -> Verdicts:
        chance = random.Random(seed)

        def fits(kind: str, row: int) -> bool:
            if by_chance:
                return chance.random() < 1 / 2
            return (kind in sounds[row].tags) != (chance.random() < wrong)

        found: Verdicts = {}
        for kind in KINDS:
            mine = [row for row, sound in enumerate(sounds) if kind in sound.tags]
            others = [row for row in range(len(sounds)) if row not in mine]
            for wording in WORDINGS:
                rows = chance.sample(mine, 2) + chance.sample(others, 2)
                found[wording.format(kind)] = {row: fits(kind, row) for row in rows}
        return found

    return judge


@pytest.fixture(scope="session")
def archive_with(sounds: list[Sound]) -> Callable[[Verdicts], Archive]:
    """Return what makes an archive of verdicts."""
    return lambda verdicts: Archive("tiny-1", sounds, verdicts)


@pytest.fixture(scope="session")
def improved(encoder: Encoder, archive_with: Callable[[Verdicts], Archive]) -> Improve:
    """Return what improves the encoder by verdicts, in a few large steps."""

    def run(verdicts: Verdicts) -> Outcome:
        with pytest.MonkeyPatch.context() as patch:
            for module in (teaching, improving):
                patch.setattr(module, "STEPS", 30)
            faster = {"RATE": 0.2, "BATCH": 48, "NOISE": 0.0, "GENERAL_WEIGHT": 1.0}
            for name, value in faster.items():
                patch.setattr(teaching, name, value)
            patch.setattr(judging, "RESAMPLES", 20)
            return improve(encoder, archive_with(verdicts), GENERAL, lambda _done, _all: None)

    return run


@pytest.fixture(scope="session")
def better(improved: Improve, listener: Listener) -> Outcome:
    """Return what came of verdicts that are right."""
    return improved(listener(seed=0))
