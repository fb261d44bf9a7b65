"""What heads learn from: what is taught is found, and the rest stays as it was."""

from collections.abc import Callable

import pytest
import torch

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.trainer.improvement import teaching
from audiofuse.trainer.improvement.archive import Archive, Verdicts
from audiofuse.trainer.improvement.heads import Reader, items, questions
from audiofuse.trainer.improvement.teaching import lesson, teach
from audiofuse.trainer.improvement.turns import Kind, Part, Questions, Share, Turn


def test_a_general_sentence_about_a_kind_that_is_here_finds_it(
    encoder: Encoder,
    archive_with: Callable[[Verdicts], Archive],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a tag names its kind, its sounds are chosen more; the rest chooses as before."""
    monkeypatch.setattr(teaching, "STEPS", 30)
    monkeypatch.setattr(teaching, "RATE", 0.2)
    archive, reader = archive_with({}), Reader(encoder)
    book = Questions(archive, {}, {"owl": ["hoo hoo"], "": ["hee haw"]})
    rows = range(len(archive.sounds))
    general = [each for each in book.every if each.kind is Kind.GENERAL]
    own = Turn(0, book).share(Part.LEARNED).questions
    share = Share(rows, [*general, *(each for each in own if each.kind is Kind.OWN)])
    sounds = reader.sounds(archive.sounds)
    taught = teach(encoder.model, lesson(share, reader, sounds), 0, lambda: None)
    pooled = reader.questions([each.text for each in general])
    owls = torch.tensor(["owl" in sound.tags for sound in archive.sounds])
    with torch.no_grad():
        before, after = (
            ((questions(model, pooled) @ items(model, sounds)[0].T) / 0.07).softmax(1)[:, owls]
            for model in (encoder.model, taught)
        )
    (owl_before, other_before), (owl_after, other_after) = before.sum(1), after.sum(1)
    assert owl_after > owl_before + 0.3
    assert abs(other_after - other_before) < 0.15
