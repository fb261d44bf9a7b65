"""The recipe of the shipped encoder: what it may learn from, and that its lessons teach."""

from pathlib import Path

import numpy as np
import pytest
import torch

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.items import Metadata
from audiofuse.core.model.classes import CLASS_SENTENCES
from audiofuse.core.model.config import TINY, Preprocessing
from audiofuse.trainer.data.batches import Example, cut
from audiofuse.trainer.training.default import (
    LABEL_CLASSES,
    ClassAnchorLoss,
    SelfDistillationLoss,
    described,
    permitted,
    tags,
    without_silence,
)

SENTENCES = {name: ["a kitten begs"] for name in ("Meow", "Cat")}
NAMES = [letter * 9 for letter in "abcdefgh"]


def _clip(licence: str = "CC0", **words: object) -> Clip:
    return Clip(
        Path("a.wav"), "a", "train", Metadata(**words), captions=("theirs",), licence=licence
    )  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("licence", "may"),
    [
        ("CC0", True), ("CC-BY", True), ("CC-BY-SA-3.0", True), ("CC-BY-NC", False),
        ("CC-Sampling+", False), ("GPL-2", False), ("CC-BY/GPL mix", False), ("", False),
    ],
)  # fmt: skip
def test_only_permitted_sounds_are_learned_from(licence: str, *, may: bool) -> None:
    """A licence that forbids shipping the result, or none at all, keeps a sound out."""
    assert bool(permitted([_clip(licence)])) is may


def test_no_human_caption_is_learned() -> None:
    """A clip's own captions are replaced by its label and what describes it, or by its title."""
    assert described(_clip(labels=("Cat",)), SENTENCES).captions == (
        "Cat", "Meow", "a kitten begs", "Cat", "a kitten begs",
    )  # fmt: skip
    assert described(_clip(title="drum loop"), SENTENCES).captions == ("drum loop",)


def test_labels_mean_classes_that_exist() -> None:
    """Every AudioSet class that a label stands for is one of those described."""
    known = {line.split("\t")[0] for line in CLASS_SENTENCES.read_text().splitlines()}
    lines = LABEL_CLASSES.read_text().splitlines()
    assert {name for line in lines for name in line.split("\t")[1].split("|")} <= known


@pytest.fixture
def anchored() -> Encoder:
    """Return a tiny encoder whose text head has eight anchors."""
    text = TINY.text.model_copy(update={"head": "anchors", "pooling": "mean"})
    audio = TINY.audio.model_copy(update={"head": "classes"})
    shape = {"text": text, "audio": audio, "dim": 16 + len(NAMES)}
    return Encoder.random(TINY.model_copy(update=shape), seed=0)


def test_sentences_teach_the_anchors(anchored: Encoder) -> None:
    """Learning which class each sentence speaks of lowers the loss of doing so."""
    lesson = ClassAnchorLoss(anchored, NAMES)
    optimizer = torch.optim.Adam(anchored.model.text_tower.project.parameters(), 0.5)
    first = lesson(anchored, [], 0)
    for step in range(30):
        optimizer.zero_grad()
        lesson(anchored, [], step).backward()
        optimizer.step()
    assert lesson(anchored, [], 0) < 0.5 * first


def test_sounds_are_taught_without_the_silence_behind_them(anchored: Encoder) -> None:
    """The same weights hear a sound at its own length while they learn, and longer when used."""
    config = anchored.config.model_copy(update={"preprocessing": Preprocessing(silence_s=1.0)})
    used = Encoder(config, anchored.runtime, anchored.text_processor, anchored.metadata_processor)
    taught = without_silence(used)
    sound = np.zeros(48_000, np.float32)  # 1.5 s
    lengths = [each.audio_processor([sound])[1].tolist() for each in (taught, used)]
    assert lengths == [[48_000], [80_000]]
    assert taught.model is used.model


def test_the_teacher_stays_as_it_was(anchored: Encoder) -> None:
    """The tower is taught what it said at first, of slower and quieter versions of a sound."""
    noise = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
    example = Example(cut(noise), "", "a noise", 0)
    lesson = SelfDistillationLoss(anchored)
    before = lesson._target(example.windows)
    bias = anchored.model.audio_tower.classifier[-1].bias
    with torch.no_grad():
        bias += 1
    optimizer = torch.optim.SGD([bias], 1e-3)  # in it alone the lesson is convex
    first = lesson(anchored, [example], 0)
    for step in range(5):
        optimizer.zero_grad()
        lesson(anchored, [example], step).backward()
        optimizer.step()
    assert lesson(anchored, [example], 0) < first
    lesson._taught.clear()
    torch.testing.assert_close(lesson._target(example.windows), before)
    assert not torch.allclose(before, tags(anchored, [example.windows])[0].sigmoid(), atol=1e-4)
