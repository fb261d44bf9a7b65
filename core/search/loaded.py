"""The encoders of questions: loaded by version, asked by many threads at once."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from audiofuse.core.audio.windows import Samples
from audiofuse.core.batcher import Batcher
from audiofuse.core.encoder.embeddings import Floats, unit
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import QueryError
from audiofuse.core.index.index import Point
from audiofuse.core.model.relevance import Relevance
from audiofuse.core.query import EVEN

log = logging.getLogger(__name__)

# Texts that are encoded as one batch. Higher: fewer batches under load; lower: shorter waits.
TEXTS_AT_ONCE = 64
Ranked = tuple[Point, float, float | None]  # with its score, and what audio gave to it
NOTHING = 1e-4  # a vector this short, beside an item's own, is what rounding left


class LoadedEncoder:
    """One encoder as questions use it. What threads ask for at once is one batch."""

    def __init__(self, encoder: Encoder, on_batch: Callable[[int], object] = int) -> None:
        """Encode with ``encoder``; ``on_batch`` is called with the size of each batch of texts."""
        self._encoder = encoder
        self._on_batch = on_batch
        self._read = Batcher[str, Floats](self._read_all, TEXTS_AT_ONCE)
        self._listening = threading.Lock()  # one sound at a time: the processors are shared

    def encode_text(self, text: str) -> Floats:
        """Return a text's vector ``(dim,)``, of unit length."""
        return self._read(text)

    def encode_texts(self, texts: Sequence[str]) -> Floats:
        """Return many texts' vectors ``(texts, dim)``, of unit length; questions go between."""
        batches = [texts[at : at + TEXTS_AT_ONCE] for at in range(0, len(texts), TEXTS_AT_ONCE)]
        return np.concatenate([unit(self._encoder.encode_text(each)) for each in batches])

    def _read_all(self, texts: list[str]) -> Sequence[Floats]:
        self._on_batch(len(texts))
        return list(unit(self._encoder.encode_text(texts)))

    def encode_audio(self, windows: Iterable[Samples]) -> Floats:
        """Return the vector ``(dim,)`` that a sound without words has as an item."""
        decoded = list(windows)  # by now: a slow upload holds up nobody else
        with self._listening:
            fused = self._encoder.fuse(self._encoder.encode_audio(decoded), [""])
        vector: Floats = fused.vectors[0]
        if not np.isfinite(vector).all():
            raise QueryError("the live encoder encodes no audio: ask by words")
        return vector

    @property
    def dim(self) -> int:
        """How many numbers a vector of a question has."""
        return self._encoder.dim

    @property
    def runs_on(self) -> str:
        """What computes; see ``Encoder``."""
        return self._encoder.runs_on

    @property
    def relevance(self) -> Relevance | None:
        """What its scores mean, if that is known."""
        return self._encoder.config.relevance

    @property
    def is_sum(self) -> bool:
        """Whether items are sums of audio and metadata, so that scores have parts."""
        return self._encoder.fuses_stored_audio

    @property
    def slack(self) -> float:
        """How much less than its best window a neighbour may score in one moment."""
        return self._encoder.config.moments.slack

    def explained(self, points: Sequence[Point], query: Floats) -> list[Ranked]:
        """Return points as they are ranked, with their scores and the parts, if there are any."""
        if not points or not self.is_sum:
            return [(point, point.score, None) for point in points]
        parts: list[float] = (self._projected(points) @ query / _norms(points)).tolist()
        return [(point, point.score, part) for point, part in zip(points, parts, strict=True)]

    def audio_parts(
        self, ranked: Sequence[tuple[Point, Point]], query: Floats
    ) -> list[float | None]:
        """Return what audio gave to the scores by which items rank, if scores have parts.

        Each item comes with what it ranks by: itself, or one of its moments, of which no vector is
        needed. Of an item its audio vector is, and its score or its item vector.
        """
        if not ranked or not self.is_sum:
            return [None] * len(ranked)
        items, by = [item for item, _ in ranked], [by for _, by in ranked]
        scores = [np.dot(each.item, query) if len(each.item) else each.score for each in items]
        # A moment's words are its item's, and what they add to the sum is the same.
        words = _norms(items) * _array(scores) - self._projected(items) @ query
        parts: list[float | None] = (_array([e.score for e in by]) - words / _norms(by)).tolist()
        return parts

    def weighed(self, points: Sequence[Point], query: Floats, balance: float) -> list[Ranked]:
        """Fuse points anew, metadata by ``balance``, audio by the rest; return them best first.

        Their item vectors are needed. An item of which nothing is left is left out.
        """
        if not points or balance == EVEN:
            return self.explained(points, query)
        audio, norms = self._projected(points), _norms(points)
        sound = (1 - balance) * audio
        words = balance * (_array([point.item for point in points]) * norms[:, None] - audio)
        lengths = np.linalg.norm(sound + words, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):  # of what is left out below
            scores: list[float] = ((sound + words) @ query / lengths).tolist()
            parts: list[float] = (sound @ query / lengths).tolist()
        left: list[bool] = (lengths > NOTHING * norms).tolist()
        ranked = list(zip(points, scores, parts, strict=True))
        return sorted(itertools.compress(ranked, left), key=lambda each: -each[1])

    def heard(self, points: Sequence[Point]) -> Floats:
        """Return where items lie by their sound alone, ``(points, dim)``, of unit length or zero.

        Their audio vectors are needed; where items are no sums their item vectors, words and all.
        """
        return unit(
            self._projected(points) if self.is_sum else _array([point.item for point in points])
        )

    def _projected(self, points: Sequence[Point]) -> Floats:
        """Return what audio gave to items, ``(points, dim)``, where they are sums."""
        projected = self._encoder.project_audio(_array([point.audio for point in points]))
        assert projected is not None
        return projected


def _norms(points: Sequence[Point]) -> Floats:
    return _array([point.payload["item_norm"] for point in points])


def _array(values: Sequence[object]) -> Floats:
    return np.array(values, np.float32)


class LoadedEncoders:
    """The encoders that are loaded, by version."""

    def __init__(
        self,
        load: Callable[[str], Encoder],
        loaded: Mapping[str, Encoder] | None = None,
        on_batch: Callable[[int], object] = int,
    ) -> None:
        """Begin with what is ``loaded``; ``load`` gets the encoder of another version.

        ``on_batch`` is called with the size of each batch of texts.
        """
        self._load = load
        self._on_batch = on_batch
        self._encoders = {
            version: LoadedEncoder(each, on_batch) for version, each in (loaded or {}).items()
        }
        self._loading = threading.Lock()

    def get(self, version: str) -> LoadedEncoder | None:
        """Return an encoder if it is loaded."""
        return self._encoders.get(version)

    @property
    def versions(self) -> frozenset[str]:
        """The versions that are loaded."""
        return frozenset(self._encoders)

    def run_on(self) -> dict[str, str]:
        """Return what computes, by version."""
        return {version: encoder.runs_on for version, encoder in self._encoders.items()}

    def load(self, version: str) -> LoadedEncoder:
        """Return an encoder; load it first if need be."""
        with self._loading:
            if version not in self._encoders:
                started = time.monotonic()
                own = self._load(version)
                encoder = LoadedEncoder(own, self._on_batch)
                encoder.encode_text("warm up")
                self._encoders = {**self._encoders, version: encoder}
                log.info(
                    "encoder %s is loaded, in %.1f s, on %s",
                    version, time.monotonic() - started, own.runs_on,
                )  # fmt: skip
        return self._encoders[version]

    def keep(self, versions: Iterable[str]) -> None:
        """Let go of all others."""
        wanted = set(versions)
        with self._loading:
            self._encoders = {v: encoder for v, encoder in self._encoders.items() if v in wanted}
