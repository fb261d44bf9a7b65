"""One question's ranking: of items alone, of recordings with their moments, or of moments.

A recording is ranked by the better of its item and its best moment. The first ``n`` recordings are
then among the first ``n`` by item and the first ``n`` by moment: so many of both are asked for,
without vectors, and what the page shows is fetched when it is known.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from audiofuse.core.encoder.embeddings import Floats
from audiofuse.core.errors import QueryError
from audiofuse.core.index.index import AUDIO, HIT_FIELDS, ITEM, Generation, Index, Nearest, Point
from audiofuse.core.query import CANDIDATES, EVEN, Question
from audiofuse.core.search.hits import Hit, unique
from audiofuse.core.search.loaded import LoadedEncoder, Ranked
from audiofuse.core.search.recordings import STATES, Heard, Recordings

BOTH = (ITEM, AUDIO)  # the vectors that what is ranked anew comes with
T = TypeVar("T")


@dataclass(frozen=True)
class Ranking:
    """A question that comes down to the vector ``query``, asked of one generation."""

    index: Index
    recordings: Recordings
    nearest: Callable[[Generation, Nearest], list[Point]]
    generation: Generation
    encoder: LoadedEncoder
    question: Question
    query: Floats

    def by_items(self) -> list[Hit]:
        """Return a page where there are no moments."""
        if self.question.ranks_anew:
            points = self._items(self._asked(CANDIDATES, self._fields, BOTH))
            hits = [Hit.of(*each) for each in self._weighed(points)]
            return self._paged(unique(hits) if self.question.unique else hits)
        asked = self._asked(self.question.limit, self._fields, (AUDIO,))
        points = self._items(replace(asked, offset=self.question.offset))
        return [Hit.of(*each) for each in self.encoder.explained(points, self.query)]

    def by_recordings(self) -> list[Hit]:
        """Return a page of recordings, each with its moments."""
        if self.question.ranks_anew:
            hits = self._paged(self._ranked_anew())
        else:
            hits = self._explained(self._paged(list(self._best().items())))
        heard = self._heard(hits)
        return [
            replace(hit, moments=tuple(moment for moment, _ in heard.get(hit.id, [])))
            for hit in hits
        ]

    def by_moments(self) -> list[Hit]:
        """Return a page of moments; a sound without any is one itself."""
        if self.question.ranks_anew:
            hits = self._ranked_anew()[: self._reach]
        else:
            hits = self._explained(list(self._best(wholes=False).items()))
        heard = self._heard(hits)
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

    def _items(self, asked: Nearest) -> list[Point]:
        return self.nearest(self.generation, asked)

    def _moments(
        self, items: Iterable[Point], limit: int, vectors: Sequence[str]
    ) -> dict[str, Point]:
        known = {item.id: item.payload for item in items}
        asked = self._asked(limit, (), vectors)
        return self.recordings.nearest(self.generation, asked, known)

    def _best(self, *, wholes: bool = True) -> dict[str, Point]:
        """Return the first recordings by id, best first, each with its item or its moment.

        Without ``wholes`` the items of those that have moments do not count.
        """
        items = self._items(self._asked(self._reach, STATES, ()))
        best = {item.id: item for item in items if wholes or not item.payload.get("moments")}
        for id_, moment in self._moments(items, self._reach, ()).items():
            if id_ not in best or moment.score > best[id_].score:
                best[id_] = moment
        first = sorted(best.items(), key=lambda each: (-each[1].score, each[0]))
        return dict(first[: self._reach])

    def _explained(self, best: Sequence[tuple[str, Point]]) -> list[Hit]:
        """Fetch what hits are made of, and tell of each score what audio gave to it."""
        ids = [id_ for id_, _ in best]
        items = self.index.get(self.generation, ids, fields=self._fields, vectors=(AUDIO,))
        of_moments = [point.id for id_, point in best if point.id != id_]
        scored = items | self._windows(of_moments, (AUDIO,))
        there = [(id_, at) for id_, at in best if id_ in items and at.id in scored]
        points = [replace(scored[at.id], score=at.score) for _, at in there]
        return [
            Hit.of(items[id_], score, audio)
            for (id_, _), (_, score, audio) in zip(
                there, self.encoder.explained(points, self.query), strict=True
            )
        ]

    def _windows(self, ids: Sequence[str], vectors: Sequence[str]) -> dict[str, Point]:
        if not ids:
            return {}
        moments = self.generation.moments
        return self.index.get(moments, ids, fields=["item_norm"], vectors=vectors)

    def _explained_moments(self, listed: Sequence[tuple[Hit, Point | None]]) -> list[Hit]:
        found = self._windows([each.id for _, each in listed if each], BOTH)
        points = [
            replace(found[at.id], score=at.score) for _, at in listed if at and at.id in found
        ]
        parts = {point.id: audio for point, _, audio in self._weighed(points)}
        return [_with_part(hit, parts.get(at.id)) if at else hit for hit, at in listed]

    def _ranked_anew(self) -> list[Hit]:
        """Return all recordings among the nearest candidates, best first."""
        items = self._items(self._asked(CANDIDATES, self._fields, BOTH))
        moments = self._moments(items, CANDIDATES, BOTH)
        best: dict[str, Ranked] = {}
        for each in sorted(
            self._weighed([*items, *moments.values()]), key=lambda ranked: -ranked[1]
        ):
            best.setdefault(each[0].payload.get("item", each[0].id), each)
        known = {item.id: item for item in items}
        if unknown := [id_ for id_ in best if id_ not in known]:
            known |= self.index.get(self.generation, unknown, fields=self._fields)
        hits = [
            Hit.of(known[id_], score, audio)
            for id_, (_, score, audio) in best.items()
            if id_ in known
        ]
        return unique(hits) if self.question.unique else hits

    def _weighed(self, points: Sequence[Point]) -> list[Ranked]:
        if self.encoder.is_sum:
            return self.encoder.weighed(points, self.query, self.question.weight_of_metadata)
        if self.question.balance is not None:
            raise QueryError("the live encoder fuses audio and metadata inseparably: no balance")
        return self.encoder.explained(points, self.query)

    def _heard(self, hits: Iterable[Hit]) -> dict[str, list[Heard]]:
        payloads = {hit.id: hit.payload for hit in hits}
        balance = self.question.weight_of_metadata if self.encoder.is_sum else EVEN
        return self.recordings.heard(self.generation, self.query, payloads, self.encoder, balance)


def _with_part(hit: Hit, audio: float | None) -> Hit:
    return replace(hit, audio=audio, metadata=None if audio is None else hit.score - audio)
