"""Searching: from a question to ranked hits, each with what audio and metadata contributed."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from functools import partial
from typing import TypeVar

import numpy as np

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import Opener
from audiofuse.core.bundles.loading import load_encoder, load_version
from audiofuse.core.bundles.registry import Watch, open_registry
from audiofuse.core.encoder.embeddings import Floats, unit
from audiofuse.core.errors import NotFound, QueryError, Unavailable
from audiofuse.core.index.index import Generation, Index, Point, open_index
from audiofuse.core.query import Places, Question, Vector, check_id, check_words
from audiofuse.core.search.answering import Answering
from audiofuse.core.search.hits import Found, Timeline
from audiofuse.core.search.live import Live
from audiofuse.core.search.loaded import LoadedEncoder, LoadedEncoders
from audiofuse.core.search.relevance import judged, widened
from audiofuse.core.settings import Settings

log = logging.getLogger(__name__)

MAX_SOUND_S = 60.0  # longest sound to search by: what it costs grows with its length
ITEMS_AT_ONCE = 100  # that the index is asked for by their ids: a payload may have 256 kB
AWAY_FROM = 0.5  # how much of what is not wanted is taken from what is
T = TypeVar("T")


class Searcher:
    """Asks the live generation with the encoder that made it. Many threads may ask at once."""

    def __init__(
        self,
        index: Index,
        encoders: LoadedEncoders,
        wanted: Callable[[], Iterable[str]] = tuple,
        open_sound: Opener = open_recording,
        max_sound_s: float = MAX_SOUND_S,
    ) -> None:
        """Search ``index`` with ``encoders``; ``wanted`` tells which versions may soon be live.

        ``open_sound`` decodes the sounds of questions, which may last ``max_sound_s``.
        """
        self._index = index
        self._live = Live(index, encoders, wanted)
        self._open_sound = open_sound
        self._max_sound_s = max_sound_s
        self._answering = Answering(index)

    def within(self, places: Places) -> "Searcher":
        """Return a searcher that finds, counts and tells of nothing but what lies in some places.

        It shares everything with this one but what it may see; ``None`` is everything.
        """
        if places is None:
            return self
        view = copy(self)
        view._index = self._index.within(places)  # noqa: SLF001 - one of ours
        view._answering = self._answering.over(view._index)  # noqa: SLF001 - as above
        return view

    def search(self, question: Question | str) -> Found:
        """Return the items that answer a question; a string is asked as words.

        Raises ``NotFound`` when there is no item to be ``like``, ``QueryError`` when the live
        encoder cannot answer such a question, ``Rejected`` when a sound cannot be heard,
        ``Unavailable`` when the index is away, and ``ConfigurationError`` when the live encoder is
        nowhere to be had.
        """
        asked = Question(question) if isinstance(question, str) else question
        found = self._live.ask(lambda live, encoder: self._search(live, encoder, asked))
        return found or Found(None, [])

    def timeline(self, id_: str, question: Question | str) -> Timeline:
        """Return how near each window of an item is to a question, in the order of time.

        Only what is asked for counts, by words, sounds or items, and ``without``. Raises what
        ``search`` does, and ``NotFound`` if there is no such item.
        """
        check_id(id_)
        asked = Question(question) if isinstance(question, str) else question

        def work(live: Generation, encoder: LoadedEncoder) -> Timeline:
            item = self._get(live, id_, vectors=True)
            query = self._query(live, encoder, asked)
            windows = self._answering.recordings.timeline(live, item, query)
            return Timeline(live.version, windows)

        found = self._live.ask(work)
        if found is None:
            raise NotFound(f"there is no item {id_}")
        return found

    def embed(self, text: str) -> tuple[str, list[float]]:
        """Return the live encoder's version and a text's vector, of unit length.

        Raises ``NotFound`` before anything is indexed, else what ``search`` does.
        """
        check_words(text)
        embedded = self._live.ask(
            lambda live, encoder: (live.version, encoder.encode_text(text).tolist())
        )
        if embedded is None:
            raise NotFound("nothing is indexed yet, so that no encoder is live")
        return embedded

    def vector(self, id_: str, at_s: float | None = None) -> tuple[str, list[float]]:
        """Return the live version and an item's vector, or that of its moment at a second.

        Raises ``NotFound`` if there is no such item, and ``QueryError`` if it is shorter than that.
        """
        check_id(id_)
        found = self._live.ask(lambda live, _: (live.version, self._like(live, id_, at_s)))
        if found is None:
            raise NotFound(f"there is no item {id_}")
        version, vector = found
        return version, vector.tolist()

    def item(self, id_: str) -> Point:
        """Return an item of the live generation; ``NotFound`` if there is none."""
        check_id(id_)
        found = self._live.ask(lambda live, _: self._get(live, id_))
        if found is None:
            raise NotFound(f"there is no item {id_}")
        return found

    def items(self, ids: Iterable[str]) -> Iterator[Point]:
        """Yield those of these items that the live generation has, each once, in their order."""
        wanted = list(dict.fromkeys(ids))
        for at in range(0, len(wanted), ITEMS_AT_ONCE):
            yield from self._items(wanted[at : at + ITEMS_AT_ONCE])

    def _items(self, ids: Sequence[str]) -> list[Point]:
        found = self._live.ask(lambda live, _: self._index.get(live, ids)) or {}
        return [found[id_] for id_ in ids if id_ in found]

    def count(self) -> tuple[str | None, int]:
        """Return the live version and how many items it has."""
        counted = self._live.ask(lambda live, _: (live.version, self._index.count(live)))
        return counted or (None, 0)

    def with_index(self, work: Callable[[Index, Generation], T]) -> T | None:
        """Return what ``work`` makes of the live generation; ``None`` before the first item."""
        return self._live.ask(lambda live, _: work(self._index, live))

    def with_encoder(self, work: Callable[[Index, Generation, LoadedEncoder], T]) -> T | None:
        """Likewise, with the encoder that made that generation."""
        return self._live.ask(lambda live, encoder: work(self._index, live, encoder))

    def _search(self, generation: Generation, encoder: LoadedEncoder, question: Question) -> Found:
        asked = widened(question, encoder.relevance)
        query = self._query(generation, encoder, question)
        hits = self._answering.hits(generation, encoder, asked, query)
        return Found(generation.version, *judged(hits, question, encoder.relevance))

    def _query(self, generation: Generation, encoder: LoadedEncoder, question: Question) -> Floats:
        """Return the one vector ``(dim,)`` that a question comes down to, of unit length."""
        vectors = []
        if question.text:
            vectors.append(encoder.encode_text(question.text))
        if question.sound:
            with self._open_sound(question.sound, self._max_sound_s) as recording:
                vectors.append(encoder.encode_audio(recording.windows()))
        if question.vector:
            vectors.append(_given(question.vector, generation, encoder))
        elif question.like:
            vectors.append(self._like(generation, question.like, question.at_s))
        query = unit(np.sum(vectors, axis=0))
        if question.without:
            query = unit(query - AWAY_FROM * encoder.encode_text(question.without))
        return query

    def _like(self, generation: Generation, id_: str, at_s: float | None) -> Floats:
        """Return an item's vector ``(dim,)``, or that of its moment at a second."""
        point = self._get(generation, id_, vectors=True)
        if at_s is not None:
            duration_s = point.payload["duration_s"]
            if at_s > duration_s:
                raise QueryError(f"the item is {duration_s:.1f} s long: no moment is at {at_s} s")
            point = self._answering.recordings.at(generation, point, at_s) or point
        vector: Floats = np.array(point.item, np.float32)
        return vector

    def _get(self, generation: Generation, id_: str, *, vectors: bool = False) -> Point:
        point = self._index.get(generation, [id_], vectors=vectors).get(id_)
        if point is None:
            raise NotFound(f"there is no item {id_}")
        return point

    def check(self) -> None:
        """Raise ``Unavailable`` if the index is away."""
        self._index.live()

    @property
    def loaded(self) -> frozenset[str]:
        """The versions whose encoders are loaded."""
        return self._live.loaded

    def run_on(self) -> dict[str, str]:
        """Return on what the encoders run that are loaded, by version."""
        return self._live.run_on()

    def prepare(self) -> None:
        """Load the encoders that are or may soon be needed, and let go of all others."""
        self._live.prepare()

    def follow(self, prepared: Callable[[], object] = int) -> None:
        """Prepare again and again, for ever; run this in a thread. Whatever fails, search goes on.

        ``prepared`` is called after each time that all could be loaded. What cannot be loaded is
        tried more and more seldom.
        """
        self._live.follow(prepared)


def _given(vector: Vector, generation: Generation, encoder: LoadedEncoder) -> Floats:
    """Return a question's own vector ``(dim,)``; ``QueryError`` if it is none of this version."""
    if vector.encoder != generation.version:
        raise QueryError(f"the vector is of {vector.encoder}, and {generation.version} is live")
    if len(vector.values) != encoder.dim:
        raise QueryError(f"the vector has {len(vector.values)} numbers instead of {encoder.dim}")
    return np.array(vector.values, np.float32)


def open_searcher(
    settings: Settings,
    open_sound: Opener = open_recording,
    on_batch: Callable[[int], object] = int,
    watch: Watch | None = None,
) -> Searcher:
    """Return a searcher that has loaded what it needs: all that a program of your own must call.

    ``on_batch`` is called with the size of each batch of texts. ``watch`` is how the rollout is
    seen; unset: as the settings' registry has it.
    Raises ``ConfigurationError`` when an encoder that it needs is nowhere to be had.
    """
    watch = watch or Watch(open_registry(settings))
    own = None if _is_open(watch) else load_encoder(settings)

    def wanted() -> tuple[str, ...]:
        if rollout := watch.look():
            return rollout.versions
        return (own[1],) if own else ()

    encoders = LoadedEncoders(
        partial(load_version, settings), {own[1]: own[0]} if own else {}, on_batch
    )
    searcher = Searcher(open_index(settings), encoders, wanted, open_sound)
    try:
        searcher.prepare()
    except Unavailable as error:
        log.warning("not everything is loaded yet: %s", error)
    return searcher


def _is_open(watch: Watch) -> bool:
    """Whether there is a document; without one AUDIOFUSE_ENCODER is what to begin with."""
    try:
        return watch.look() is not None
    except Unavailable as error:
        log.warning("the registry is away: %s", error)
        return False


class AsyncSearcher:
    """A searcher for a program with an event loop: each question is asked in a thread."""

    def __init__(self, searcher: Searcher) -> None:
        """Ask ``searcher``."""
        self._searcher = searcher

    async def search(self, question: Question | str) -> Found:
        """See ``Searcher``."""
        return await asyncio.to_thread(self._searcher.search, question)

    async def embed(self, text: str) -> tuple[str, list[float]]:
        """See ``Searcher``."""
        return await asyncio.to_thread(self._searcher.embed, text)
