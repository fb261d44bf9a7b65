"""Heads: what they make of stored vectors is what the encoder makes."""

import copy

import numpy as np
import pytest
import torch

from audiofuse.core.encoder.embeddings import AudioEmbedding, unit
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.model.config import TINY
from audiofuse.trainer.improvement import heads as module
from audiofuse.trainer.improvement.archive import Sound
from audiofuse.trainer.improvement.heads import (
    Reader,
    heads,
    items,
    questions,
    set_between,
    set_to_mean,
)

SHAPES = [
    {"fusion": "late"},
    {"fusion": "late", "absent": "empty"},
    {"fusion": "audio"},
    {"fusion": "metadata"},
    {"fusion": "late", "metadata": TINY.text},
    {"fusion": "late", "audio": TINY.audio.model_copy(update={"head": "classes"})},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_items_and_questions_are_those_of_the_encoder(
    shape: dict[str, object], sounds: list[Sound]
) -> None:
    """Whatever the fusion, with words and without, ranking by stored vectors is ranking."""
    encoder = Encoder.random(TINY.model_copy(update=shape), seed=1)
    some = sounds[:3]
    audio = AudioEmbedding(np.stack([sound.audio for sound in some]))
    reader = Reader(encoder)
    with torch.no_grad():
        alone, whole = items(encoder.model, reader.sounds(some))
        asked = questions(encoder.model, reader.questions(["an owl", "a bell"]))
    texts = [sound.clip.metadata.text for sound in some]
    np.testing.assert_allclose(whole, encoder.fuse(audio, texts).vectors, atol=1e-5)
    expected = np.nan_to_num(encoder.fuse(audio, ["", "", ""]).vectors)
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    words = unit(encoder.encode_text(["an owl", "a bell"]))
    np.testing.assert_allclose(asked, words, atol=1e-5)


def test_heads_are_set_between_and_to_a_mean(encoder: Encoder) -> None:
    """A part of the way is a part of each weight's way, and the mean that of each weight."""
    start, model = encoder.model, copy.deepcopy(encoder.model)
    end = copy.deepcopy(start)
    with torch.no_grad():
        for weights in heads(end):
            weights.add_(1)
    set_between(model, start, end, 0.25)
    assert all(torch.allclose(w, s + 0.25) for w, s in zip(heads(model), heads(start), strict=True))
    set_to_mean(model, [start, end])
    assert all(torch.allclose(w, s + 0.5) for w, s in zip(heads(model), heads(start), strict=True))


def test_texts_are_read_in_an_order_of_their_own(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets have another order in each process: it makes no other batches, and no other weights."""
    read: list[list[str]] = []

    def pooled(_tower: object, _processor: object, texts: list[str]) -> torch.Tensor:
        read.append(texts)
        return torch.zeros(len(texts), 1)

    monkeypatch.setattr(module, "_pooled", pooled)
    texts = [f"question {letter}" for letter in "hgfedcba"]
    Reader(encoder).questions([*texts, "owl"])
    assert read == [["owl", *sorted(texts)]]
