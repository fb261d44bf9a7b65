"""What a sound may be called: classes that are near to it, by the live encoder's own space.

Each class has a place among the meanings: half its name, half what sentences about it have in
common. An item is compared with them by what its sound gave to it: words that it has do not count.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from audiofuse.core.encoder.embeddings import Floats, unit
from audiofuse.core.index.index import AUDIO, ITEM, Generation, Index
from audiofuse.core.model.classes import class_sentences
from audiofuse.core.search.loaded import LoadedEncoder
from audiofuse.core.search.search import Searcher

MOST_LABELS = 5  # of one item
# How near a class must be, as a cosine. Higher: fewer labels, more of them right. In DECISIONS.md.
NEAR = 0.4
# Sentences of each class that are read, of ten. More: the first question after a start, or after a
# rollout, waits longer, and no better labels were measured.
SENTENCES = 2


@dataclass(frozen=True)
class Label:
    """A class that an item is near to, and how near: a cosine."""

    name: str
    score: float


@dataclass(frozen=True)
class Suggested:
    """Labels by the id of an item, the nearest first, and the version that finds them near."""

    encoder: str | None = None
    labels: Mapping[str, Sequence[Label]] = field(default_factory=dict)


class Labels:
    """Suggests labels for items of the live generation. Many threads may ask at once."""

    def __init__(self) -> None:
        """Suggest for whatever is searched; nothing is read yet."""
        self._names = tuple(class_sentences())
        self._placing = threading.Lock()  # whoever has it reads all sentences, which takes seconds
        self._placed: tuple[str, Floats] | None = None  # by which version, and where

    def suggest(self, searcher: Searcher, ids: Sequence[str]) -> Suggested:
        """Return labels, if any are near, for those items that ``searcher`` has, in their order.

        Raises what ``Searcher.search`` does. The first one to ask of a version waits some seconds.
        """

        def work(index: Index, live: Generation, encoder: LoadedEncoder) -> Suggested:
            kept = AUDIO if encoder.is_sum else ITEM
            found = index.get(live, ids, fields=["key"], vectors=(kept,))
            there = [id_ for id_ in dict.fromkeys(ids) if id_ in found]
            if not there:
                return Suggested(live.version)
            heard = encoder.heard([found[id_] for id_ in there])
            near = heard @ self._places(live.version, encoder).T
            return Suggested(live.version, dict(zip(there, map(self._labels, near), strict=True)))

        return searcher.with_encoder(work) or Suggested()

    def _labels(self, near: Floats) -> list[Label]:
        """Return the nearest of all classes ``(classes,)``; of a sound that gives nothing none."""
        first = np.argsort(-near)[:MOST_LABELS].tolist()
        return [Label(self._names[at], float(near[at])) for at in first if near[at] >= NEAR]

    def _places(self, version: str, encoder: LoadedEncoder) -> Floats:
        """Return where a version has the classes, ``(classes, dim)``, of unit length."""
        with self._placing:
            if self._placed is None or self._placed[0] != version:
                self._placed = version, class_places(encoder)
            return self._placed[1]


def class_places(encoder: LoadedEncoder) -> Floats:
    """Return where an encoder has the classes, ``(classes, dim)``, of unit length."""
    described = class_sentences()
    named = encoder.encode_texts(list(described))
    sentences = [each for lines in described.values() for each in lines[:SENTENCES]]
    said = encoder.encode_texts(sentences).reshape(len(named), -1, named.shape[1])
    return unit(named + said.mean(axis=1))
