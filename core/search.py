"""Searching: from a sentence to ranked hits, each with what audio and metadata contributed."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.encoder import Encoder
from core.errors import ConfigurationError
from core.index import Index, Point
from core.query import check_query


@dataclass(frozen=True)
class Hit:
    """An item found. ``score`` is the cosine; its parts ``audio`` and ``metadata`` add up to it.

    Mid fusion has no such parts: they are ``None``.
    """

    key: str
    score: float
    audio: float | None
    metadata: float | None
    payload: Mapping[str, Any]


class Searcher:
    """Asks the live generation with the text tower of the encoder that made it."""

    def __init__(self, index: Index, encoder: Encoder, version: str) -> None:
        """Search ``index`` with ``encoder``, whose version is ``version``."""
        self._index = index
        self._encoder = encoder
        self._version = version
        self._encoding = threading.Lock()  # requests come in threads; the model is used by one

    def search(self, text: str, top: int = 10) -> list[Hit]:
        """Return the ``top`` items nearest to a sentence, best first; none before the first item.

        Raises ``QueryError`` for a query without words or a bad ``top``, ``Unavailable`` when the
        index is away, ``ConfigurationError`` when another encoder version is live.
        """
        check_query(text, top)
        generation = self._index.live()
        if generation is None:
            return []
        if generation.version != self._version:
            raise ConfigurationError(
                f"the live index was made by encoder {generation.version}, "
                f"this process has {self._version}: restart it with the live bundle"
            )
        with self._encoding:
            query = torch.nn.functional.normalize(self._encoder.read([text]))[0]
        points = self._index.search(generation, query.tolist(), top)
        return self._hits(points, query)

    def _hits(self, points: list[Point], query: Tensor) -> list[Hit]:
        parts = self._audio_parts(points, query) if points else []
        return [
            Hit(
                key=point.payload["key"],
                score=point.score,
                audio=part,
                metadata=None if part is None else point.score - part,
                payload=point.payload,
            )
            for point, part in zip(points, parts, strict=True)
        ]

    def _audio_parts(self, points: list[Point], query: Tensor) -> list[float] | list[None]:
        audio = torch.tensor([point.audio for point in points], device=query.device)
        norms = torch.tensor([point.payload["item_norm"] for point in points])
        with self._encoding:
            projected = self._encoder.project_audio(audio)
        if projected is None:
            return [None] * len(points)
        parts: list[float] = ((projected @ query).cpu() / norms).tolist()
        return parts
