"""One question's ranking: of items alone, of recordings with their moments, or of moments.

A recording is ranked by the better of its item and its best moment. The first ``n`` recordings are
then among the first ``n`` by item and the first ``n`` by moment: so many of both are asked for,
near the beginning with all that the page may show, far from it without vectors, and what the page
shows is fetched when it is known.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeVar

from audiofuse.core.encoder.embeddings import Floats
from audiofuse.core.errors import QueryError
from audiofuse.core.index.index import AUDIO, HIT_FIELDS, Generation, Index, Nearest, Point
from audiofuse.core.query import CANDIDATES, EVEN, Question
from audiofuse.core.search.hits import Hit, unique
from audiofuse.core.search.loaded import LoadedEncoder, Ranked
from audiofuse.core.search.recordings import (
    BOTH,
    OF_EACH,
    STATES,
    ComeWith,
    Heard,
    Recordings,
    agrees,
    joined,
)

# Hits up to the end of a page for which all that it may show is fetched at once. Raised, more is
# fetched that is not shown, some 10 kB a hit; lowered, more pages take two requests more.
AT_ONCE = 50
T = TypeVar("T")


@dataclass(frozen=True)
class First:
    """The first recordings, best first, and some that follow them.

    ``best`` is what each is ranked by, its item or a moment. ``items`` are those that came whole,
    ``windows`` the nearest moments that are known, by item.
    """

    best: list[tuple[str, Point]]
    items: Mapping[str, Point]
    windows: Mapping[str, Sequence[Point]]


@dataclass(frozen=True)
class Ranking:
    """A question that comes down to the vector ``query``, asked of one generation."""

    index: Index
    recordings: Recordings
    nearest: Callable[[Generation, Nearest], list[Point]]
    begin: Callable[[Generation, Nearest], Future[list[Point]]]
    generation: Generation
    encoder: LoadedEncoder
    question: Question
    query: Floats

    def by_items(self) -> list[Hit]:
        """Return a page where there are no moments."""
        if self.question.ranks_anew:
            points = self.nearest(self.generation, self._asked(CANDIDATES, self._fields, BOTH))
            hits = [Hit.of(*each) for each in self._weighed(points)]
            return self._paged(unique(hits) if self.question.unique else hits)
        asked = self._asked(self.question.limit, self._fields, (AUDIO,))
        points = self.nearest(self.generation, replace(asked, offset=self.question.offset))
        return [Hit.of(*each) for each in self.encoder.explained(points, self.query)]

    def by_recordings(self) -> list[Hit]:
        """Return a page of recordings, each with its moments."""
        if self.question.ranks_anew:
            hits = self._paged(self._ranked_anew())
            heard = self._heard(hits, {})
        else:
            first = self._first()
            hits = self._full_page(first)
            heard = self._heard(hits, first.windows)
        return [
            replace(hit, moments=tuple(moment for moment, _ in heard.get(hit.id, [])))
            for hit in hits
        ]

    def by_moments(self) -> list[Hit]:
        """Return a page of moments; a sound without any is one itself."""
        if self.question.ranks_anew:
            # Not as many as the page reaches: weighed, a moment may be better than that by which
            # its recording was found, and every page must be a part of one list.
            hits = self._ranked_anew(wholes=False)[:CANDIDATES]
            heard = self._heard(hits, {})
        else:
            first = self._first(wholes=False)
            hits = self._explained(first.best[: self._reach], first.items)
            heard = self._heard(hits, first.windows)
        listed: list[tuple[Hit, Point | None]] = []
        for hit in hits:
            listed += [
                (replace(hit, score=moment.score, moments=(moment,)), window)
                for moment, window in heard.get(hit.id, [])
            ] or [(hit, None)]
        listed.sort(key=lambda each: -each[0].score)
        return self._explained_moments(self._paged(listed))

    @property
    def _reach(self) -> int:
        """How many hits there are up to the end of the page."""
        return self.question.offset + self.question.limit

    def _paged(self, ranked: Sequence[T]) -> list[T]:
        return list(ranked[self.question.offset : self._reach])

    @property
    def _fields(self) -> list[str]:
        return [*HIT_FIELDS, *(["extra"] if self.question.extra else [])]

    def _asked(self, limit: int, fields: Sequence[str], vectors: Sequence[str]) -> Nearest:
        return Nearest(self.query.tolist(), limit, 0, self.question.where, fields, vectors)

    def _first(self, *, wholes: bool = True) -> First:
        """Return the first recordings up to the end of the page.

        Without ``wholes`` the items of those that have moments do not count.
        """
        at_once = self._reach <= AT_ONCE
        come_with = ComeWith(self._fields, BOTH) if at_once else STATES
        vectors = (AUDIO,) if at_once else ()  # what is found has its score
        begun = self.begin(self.generation, self._asked(self._reach, come_with.fields, vectors))
        items, windows = self.recordings.nearest(
            self.generation, self._asked(self._reach, (), ()), begun, come_with,
            OF_EACH if at_once else 1,
        )  # fmt: skip
        found = begun.result()
        best = {item.id: item for item in found if wholes or not item.payload.get("moments")}
        for id_, (moment, *_) in windows.items():
            if id_ not in best or moment.score > best[id_].score:
                best[id_] = moment
        first = sorted(best.items(), key=lambda each: (-each[1].score, each[0]))
        return First(first, items, windows) if at_once else First(first, {}, {})

    def _full_page(self, first: First) -> list[Hit]:
        """Explain a page; what went while it was asked for is made up for by what follows it."""
        page = self._paged(first.best)
        hits = self._explained(page, first.items)
        following = first.best[self._reach : self._reach + len(page) - len(hits)]
        return hits + self._explained(following, first.items) if following else hits

    def _explained(
        self, best: Sequence[tuple[str, Point]], known: Mapping[str, Point]
    ) -> list[Hit]:
        """Fetch what hits are made of, and tell of each score what audio gave to it."""
        items = dict(known)
        if asked := [id_ for id_, _ in best if id_ not in known]:
            items |= self.index.get(self.generation, asked, fields=self._fields, vectors=BOTH)
        there = [(items[id_], at) for id_, at in best if id_ in items]
        return [
            Hit.of(item, at.score, audio)
            for (item, at), audio in zip(
                there, self.encoder.audio_parts(there, self.query), strict=True
            )
        ]

    def _explained_moments(self, listed: Sequence[tuple[Hit, Point | None]]) -> list[Hit]:
        ids, moments = [each.id for _, each in listed if each], self.generation.moments
        found = self.index.get(moments, ids, fields=["item_norm"], vectors=BOTH) if ids else {}
        points = [
            replace(found[at.id], score=at.score) for _, at in listed if at and at.id in found
        ]
        parts = {point.id: audio for point, _, audio in self._weighed(points)}
        return [_with_part(hit, parts.get(at.id)) if at else hit for hit, at in listed]

    def _ranked_anew(self, *, wholes: bool = True) -> list[Hit]:
        """Return all recordings among the nearest candidates, best first.

        Without ``wholes`` the items of those that have moments do not count.
        """
        begun = self.begin(self.generation, self._asked(CANDIDATES, self._fields, BOTH))
        known, windows = self.recordings.nearest(
            self.generation, self._asked(CANDIDATES, (), BOTH), begun, ComeWith(self._fields)
        )
        points = [item for item in begun.result() if wholes or not item.payload.get("moments")]
        points += [moment for moment, *_ in windows.values()]
        best: dict[str, Ranked] = {}
        for each in sorted(self._weighed(points), key=lambda ranked: -ranked[1]):
            best.setdefault(each[0].payload.get("item", each[0].id), each)
        hits = [Hit.of(known[id_], score, audio) for id_, (_, score, audio) in best.items()]
        return unique(hits) if self.question.unique else hits

    def _weighed(self, points: Sequence[Point]) -> list[Ranked]:
        if self.encoder.is_sum:
            return self.encoder.weighed(points, self.query, self.question.weight_of_metadata)
        if self.question.balance is not None:
            raise QueryError("the live encoder fuses audio and metadata inseparably: no balance")
        return self.encoder.explained(points, self.query)

    def _heard(
        self, hits: Iterable[Hit], known: Mapping[str, Sequence[Point]]
    ) -> dict[str, list[Heard]]:
        """Return where in recordings the question is heard, best first, by item.

        ``known`` are the nearest windows of some of them, where nothing is weighed anew.
        """
        balance = self.question.weight_of_metadata if self.encoder.is_sum else EVEN
        payloads = {hit.id: hit.payload for hit in hits if hit.payload.get("moments")}
        nearest = {id_: known[id_] for id_ in payloads if id_ in known}
        if asked := [id_ for id_ in payloads if id_ not in known]:
            nearest |= self.recordings.windows(
                self.generation, self.query, asked, weighed=balance != EVEN
            )
        heard: dict[str, list[Heard]] = {}
        for id_, windows in nearest.items():
            points = [each for each in windows if agrees(each, payloads[id_])]
            if balance != EVEN:
                ranked = self.encoder.weighed(points, self.query, balance)
                points = [replace(point, score=score) for point, score, _ in ranked]
            heard[id_] = joined(points, self.encoder.slack)
        return heard


def _with_part(hit: Hit, audio: float | None) -> Hit:
    return replace(hit, audio=audio, metadata=None if audio is None else hit.score - audio)
