"""What verdicts tell of a question's meaning."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from audiofuse.core.evaluation.clips import clip_of
from audiofuse.core.items import Metadata
from audiofuse.trainer.improvement.archive import Archive, Sound, Verdicts
from audiofuse.trainer.improvement.meaning import candidates, tags_meant


@pytest.fixture
def archive() -> Callable[[Verdicts], Archive]:
    """Return what makes an archive of sounds with these tags: dog, farm; dog; cat, farm; rain."""
    tags = (("dog", "farm"), ("dog",), ("cat", "farm"), ("rain",))
    sounds = [
        Sound(str(row), "e", clip_of(Path(f"{row}.wav"), str(row), Metadata(keywords=own)),
              np.ones(4, np.float32))
        for row, own in enumerate(tags)
    ]  # fmt: skip
    return lambda verdicts: Archive("v", sounds, verdicts)


@pytest.mark.parametrize(
    ("verdicts", "meant"),
    [
        ({0: True, 1: True, 2: False}, "dog"),  # all that fit carry it, and nothing that misses
        ({0: True}, "farm"),  # two tags fit as well: the nearer words
        ({0: True, 1: False, 2: False}, None),  # each of its tags is on something that misses
        ({0: True, 2: True, 3: True}, "farm"),  # two of three that fit
        ({1: True, 2: True, 3: True}, None),  # each on one of three only
        ({3: False}, None),  # nothing fits
    ],
)
def test_a_question_means_the_tag_that_its_verdicts_tell(
    archive: Callable[[Verdicts], Archive], verdicts: dict[int, bool], meant: str | None
) -> None:
    """It is on most of what fits and on little of what misses; of several the nearer words."""
    asked = archive({"noise": verdicts})
    nearness = dict.fromkeys(candidates(asked), 0.1)
    nearness["noise", "farm"] = 0.2
    assert tags_meant(asked, nearness).get("noise") == meant
