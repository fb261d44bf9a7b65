"""Labels that a sound may have: classes that the live encoder has near to what it sounds like."""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from audiofuse.core.encoder.embeddings import Floats
from audiofuse.core.index.index import Index, Point, connect_embedded
from audiofuse.core.model.classes import class_sentences
from audiofuse.core.search.labels import MOST_LABELS, SENTENCES, Labels, Suggested
from audiofuse.core.search.loaded import LoadedEncoder

NAMES = list(class_sentences())
DIM = len(NAMES)
Suggest = Callable[[Sequence[str]], Suggested]
MIXED = UUID(int=1)  # 0.8 of the first class, 0.6 of the second, and 0.1 of the third


class Apart:
    """An encoder for which each class, and what is said of it, has a direction of its own."""

    def __init__(self, *, is_sum: bool = True) -> None:
        """Add up sound and words, or fuse them inseparably."""
        self.fuses_stored_audio = is_sum
        self.read = 0
        self._places = {
            text: place
            for place, (name, sentences) in enumerate(class_sentences().items())
            for text in (name, *sentences)
        }

    def encode_text(self, texts: Sequence[str]) -> Floats:
        """Count what is read."""
        self.read += len(texts)
        return np.eye(DIM, dtype=np.float32)[[self._places[text] for text in texts]]

    def project_audio(self, pooled: Floats) -> Floats:
        """Return as it is what was heard."""
        return pooled


def _mixed(*parts: float) -> list[float]:
    return [*parts, *[0.0] * (DIM - len(parts))]


@pytest.fixture(scope="module")
def live() -> tuple[Index, Any]:
    """Return an index with two items, whose words mean another class than their sounds."""
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create("late-aaa", SimpleNamespace(dim=DIM, audio_dim=DIM))
    words = tuple(np.eye(DIM)[9])
    index.upsert(
        generation,
        [
            Point(str(MIXED), {"key": "a.wav"}, words, _mixed(0.8, 0.6, 0.1)),
            Point(str(UUID(int=2)), {"key": "b.wav"}, words, _mixed(*[1.0] * 400)),
        ],
    )
    return index, generation


@pytest.fixture
def labels(live: tuple[Index, Any]) -> Callable[[Apart], Suggest]:
    """Return what suggests labels by an encoder."""

    def by(encoder: Apart) -> Suggest:
        loaded = LoadedEncoder(encoder)  # type: ignore[arg-type]
        searcher: Any = SimpleNamespace(with_encoder=lambda work: work(*live, loaded))
        return partial(Labels().suggest, searcher)

    return by


def test_labels_are_classes_near_to_the_sound(labels: Callable[[Apart], Suggest]) -> None:
    """The nearest first, those that are near only, whatever words say; unknown ids are left out."""
    ids = [str(UUID(int=7)), str(UUID(int=2)), str(MIXED)]
    found = labels(Apart())(ids)
    assert found.encoder == "late-aaa"
    assert list(found.labels) == ids[1:]
    assert [each.name for each in found.labels[str(MIXED)]] == NAMES[:2]
    assert [each.score for each in found.labels[str(MIXED)]] == pytest.approx(
        [0.8, 0.6] / np.linalg.norm([0.8, 0.6, 0.1])
    )
    assert not found.labels[str(UUID(int=2))]  # it is as far from 400 classes as from any


def test_classes_are_read_once_for_a_version(labels: Callable[[Apart], Suggest]) -> None:
    """That takes seconds: whoever asks next does not wait for it."""
    encoder = Apart()
    asked = labels(encoder)
    for _ in range(2):
        asked([str(MIXED)])
    assert encoder.read == DIM * (1 + SENTENCES)


def test_where_fusion_is_no_sum_the_item_itself_is_named(
    labels: Callable[[Apart], Suggest],
) -> None:
    """There what its sound gave to it is not to be told from the rest."""
    found = labels(Apart(is_sum=False))([str(MIXED)]).labels[str(MIXED)]
    assert [each.name for each in found] == [NAMES[9]]
    assert len(found) <= MOST_LABELS
