"""Searching: from a sentence to ranked hits, each with what audio and metadata contributed.

    alias ──> live generation ──> the tower of its version, if it is loaded; until then what was
                                  searched before, which is kept until its successor is dropped

So one answer never mixes versions, and no query waits while an encoder is loaded.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.encoder import Encoder
from core.errors import AudiofuseError
from core.index import Generation, GenerationGone, Index, Point
from core.query import check_query
from core.rollout import POLL_S

log = logging.getLogger(__name__)

MAX_PAUSE_S = 32.0
NEVER = (-math.inf, None)


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


@dataclass(frozen=True)
class Found:
    """Hits, best first, and the encoder version that found them; none before the first item."""

    encoder: str | None
    hits: list[Hit]


class Tower:
    """One encoder as queries use it. Many threads may ask, the model is used by one at a time."""

    def __init__(self, encoder: Encoder) -> None:
        """Read queries with ``encoder``."""
        self._encoder = encoder
        self._encoding = threading.Lock()

    def read(self, text: str) -> Tensor:
        """Return the query's vector ``(dim,)``, of unit length."""
        with self._encoding:
            return torch.nn.functional.normalize(self._encoder.read([text]))[0]

    def hits(self, points: list[Point], query: Tensor) -> list[Hit]:
        """Split the scores of the points that a query found."""
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


class Towers:
    """The towers that are loaded, by version."""

    def __init__(
        self, load: Callable[[str], Encoder], loaded: Mapping[str, Encoder] | None = None
    ) -> None:
        """Begin with what is ``loaded``; ``load`` gets the encoder of another version."""
        self._load = load
        self._towers = {version: Tower(each) for version, each in (loaded or {}).items()}
        self._loading = threading.Lock()

    def get(self, version: str) -> Tower | None:
        """Return a tower if it is loaded."""
        return self._towers.get(version)

    @property
    def versions(self) -> frozenset[str]:
        """The versions that are loaded."""
        return frozenset(self._towers)

    def load(self, version: str) -> Tower:
        """Return a tower; load it first if need be."""
        with self._loading:
            if version not in self._towers:
                started = time.monotonic()
                tower = Tower(self._load(version))
                tower.read("warm up")
                self._towers = {**self._towers, version: tower}
                log.info("encoder %s is loaded, in %.1f s", version, time.monotonic() - started)
        return self._towers[version]

    def keep(self, versions: Iterable[str]) -> None:
        """Let go of all others."""
        wanted = set(versions)
        with self._loading:
            self._towers = {v: tower for v, tower in self._towers.items() if v in wanted}


class Searcher:
    """Asks the live generation with the text tower of the encoder that made it."""

    def __init__(
        self, index: Index, towers: Towers, wanted: Callable[[], Iterable[str]] = tuple
    ) -> None:
        """Search ``index`` with ``towers``; ``wanted`` tells which versions may soon be live."""
        self._index = index
        self._towers = towers
        self._wanted = wanted
        self._resolving = threading.Lock()
        self._resolved: tuple[float, Generation | None] = NEVER
        self._last: tuple[Generation, Tower] | None = None  # what was searched last

    def search(self, text: str, top: int = 10) -> Found:
        """Return the ``top`` items nearest to a sentence.

        Raises ``QueryError`` for a query without words or a bad ``top``, ``Unavailable`` when the
        index is away, ``ConfigurationError`` when the live encoder is nowhere to be had.
        """
        check_query(text, top)
        try:
            return self._search(text, top)
        except GenerationGone:
            self._forget()
            return self._search(text, top)

    def _search(self, text: str, top: int) -> Found:
        chosen = self._choose()
        if chosen is None:
            return Found(None, [])
        generation, tower = chosen
        query = tower.read(text)
        points = self._index.search(generation, query.tolist(), top)
        return Found(generation.version, tower.hits(points, query))

    def _choose(self) -> tuple[Generation, Tower] | None:
        """Choose the live generation, or the one before while the live one's tower is loaded."""
        live = self._live()
        if live is None:
            return None
        tower = self._towers.get(live.version)
        if tower is None and self._last:
            return self._last
        self._last = live, tower or self._towers.load(live.version)
        return self._last

    def _live(self) -> Generation | None:
        """Resolve the alias, at most once in a while."""
        with self._resolving:
            at, live = self._resolved
            if time.monotonic() - at > POLL_S:
                live = self._index.live()
                self._resolved = time.monotonic(), live
        return live

    def _forget(self) -> None:
        with self._resolving:
            self._resolved, self._last = NEVER, None

    @property
    def loaded(self) -> frozenset[str]:
        """The versions whose towers are loaded."""
        return self._towers.versions

    def prepare(self) -> None:
        """Load the towers that are or may soon be needed, and let go of all others."""
        needed = {self._last[0].version} if self._last else set[str]()
        for version in self._needed():
            self._towers.load(version)
            needed.add(version)
        self._towers.keep(needed)

    def _needed(self) -> Iterator[str]:
        if live := self._live():
            yield live.version
        yield from self._wanted()

    def follow(self) -> None:
        """Prepare again and again, for ever; run this in a thread. Whatever fails, search goes on.

        What cannot be loaded is tried more and more seldom.
        """
        pause_s = POLL_S
        while True:
            time.sleep(pause_s)
            try:
                self.prepare()
            except AudiofuseError as error:
                log.warning("searching goes on with what is loaded: %s", error)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            except Exception:
                log.exception("searching goes on with what is loaded")
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            else:
                pause_s = POLL_S
