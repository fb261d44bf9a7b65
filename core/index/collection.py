"""Reading and writing the points of one generation.

With replicas, ``sync`` may only take for granted what a single node gives: that writes of one point
have one order, and that a later read sees them. So writes go through one replica, in its order
(``ordering="strong"``), and what is read to be compared is what most replicas say. Searching asks
any one: what it misses for a moment is no harm.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

from qdrant_client import QdrantClient, models

from audiofuse.core.index.conditions import conditions
from audiofuse.core.index.refusals import refusals
from audiofuse.core.index.rest import Record, ScoredRecord, rest_of
from audiofuse.core.query import EVERYTHING, Filter, Places, lies_within

ITEM, AUDIO = "item", "audio"  # the named vectors: what queries search, and what re-fusing needs
VERSION_KEY = "encoder"  # in the collection's metadata and in every payload
PLACE = ("bucket", "key")  # the fields that tell where an item, or that of a moment, lies
ONE_ORDER = models.WriteOrdering.STRONG
MOST = models.ReadConsistencyType.MAJORITY
SCROLL_PAGE = 1000  # points an answer: more are fewer requests, and more memory for each
# Hits of one answer, of all that is asked together: some 10 kB each, most of it the audio vector.
HITS_AT_ONCE = 2000
HIT_FIELDS = (  # all but ``extra``, of which an item may have 256 kB: it is asked for
    "bucket", "key", "etag", "sidecar_etag", "sidecar_problem", "user_metadata_hash", "modified",
    "size", "duration_s", "sample_rate", "channels", "title", "description", "keywords", "labels",
    "has_text", "item_norm", "moments", "moments_state", VERSION_KEY, "indexed_at", "content_hash",
)  # fmt: skip


@dataclass(frozen=True)
class Generation:
    """The points of one encoder version: items, or the moments of items."""

    collection: str
    version: str

    @property
    def moments(self) -> "Generation":
        """The moments of a generation of items: the same version, in a collection of their own."""
        return Generation(f"{self.collection}-moments", self.version)


@dataclass(frozen=True)
class Point:
    """An item or a moment as the index holds it. Vectors are present where they were asked for.

    A vector that is an ``array`` has ``float``s of four bytes, typecode "f".
    """

    id: str
    payload: Mapping[str, Any]
    item: Sequence[float] = ()
    audio: Sequence[float] = ()
    score: float = 0.0


@dataclass(frozen=True)
class Nearest:
    """Which points to find: the ``limit`` nearest to a vector by their item vectors.

    ``offset`` of them are passed over. They come with these payload fields, and these vectors.
    """

    vector: Sequence[float]
    limit: int
    offset: int = 0
    where: Filter = EVERYTHING
    fields: Sequence[str] = HIT_FIELDS
    vectors: Sequence[str] = (AUDIO,)


class Points:
    """The points of any generation.

    Every method raises ``GenerationGone`` if there is no such collection, else ``Unavailable`` if
    Qdrant cannot answer now. What is refused because of what was sent raises what the client does.
    """

    def __init__(self, client: QdrantClient, params: models.SearchParams | None = None) -> None:
        """Ask by ``client``, and have hits looked up by ``params``."""
        self._client = client
        self._params = params
        self._rest = rest_of(client)
        self._within: Places = None

    def within(self, places: Places) -> Self:
        """Return the same points as whoever may see nothing but these places reads them.

        Whatever is read passes here: by filters, ``bounded``, and by ids, ``get``.
        """
        view = copy(self)
        view._within = places  # noqa: SLF001 - one of ours
        return view

    def bounded(self, where: Filter) -> Filter:
        """Return a filter that lets nothing through but what may be seen."""
        return where if self._within is None else replace(where, within=self._within)

    def _passing(self, where: Filter) -> models.Filter | None:
        return conditions(self.bounded(where))

    def _refusals(self, generation: Generation, things: int = 1) -> AbstractContextManager[None]:
        return refusals(self._client, generation.collection, many=things > 1)

    def upsert(self, generation: Generation, points: Iterable[Point]) -> None:
        """Write whole points; when this returns they are searchable."""
        sent: list[dict[str, Any]] = [
            {
                "id": point.id,
                "vector": {ITEM: point.item, AUDIO: point.audio},
                "payload": dict(point.payload),
            }
            for point in points
        ]
        with self._refusals(generation, len(sent)):
            if self._rest:
                self._rest.upsert(generation.collection, sent)
            else:
                structs = [
                    models.PointStruct(
                        id=each["id"], payload=each["payload"],
                        vector={name: list(vector) for name, vector in each["vector"].items()},
                    )
                    for each in sent
                ]  # fmt: skip
                self._client.upsert(generation.collection, structs, wait=True, ordering=ONE_ORDER)

    def remove(self, generation: Generation, ids: Sequence[str]) -> None:
        """Delete points; ids without a point are no error."""
        selected = models.PointIdsList(points=list(ids))
        with self._refusals(generation, len(ids)):
            self._client.delete(generation.collection, selected, wait=True, ordering=ONE_ORDER)

    def get(
        self, generation: Generation, ids: Sequence[str], *, vectors: bool | Sequence[str] = False,
        fields: Sequence[str] = (),
    ) -> dict[str, Point]:  # fmt: skip
        """Return the points that exist among ``ids``, by id.

        They have their whole payloads, or these ``fields``; and no, all, or these vectors.
        """
        if self._within is None:
            return self._get(generation, ids, vectors, fields)
        found = self._get(generation, ids, vectors, [*fields, *PLACE] if fields else ())
        return {
            id_: point
            for id_, point in found.items()
            if lies_within(point.payload["key"], point.payload["bucket"], self._within)
        }

    def _get(
        self, generation: Generation, ids: Sequence[str], vectors: Any, fields: Sequence[str]
    ) -> dict[str, Point]:  # fmt: skip
        asked = vectors if isinstance(vectors, bool) else list(vectors)
        payload = list(fields) or True
        with self._refusals(generation, len(ids)):
            if self._rest:
                found = self._rest.retrieve(generation.collection, list(ids), asked, payload)
                return {each.id: as_point(each) for each in found}
            records = self._client.retrieve(
                generation.collection, list(ids), payload, asked, consistency=MOST
            )
        return {str(record.id): as_point(record) for record in records}

    def search(self, generation: Generation, asked: Sequence[Nearest]) -> list[list[Point]]:
        """Return, for each that is asked, the points nearest to it, best first.

        No answer that is waited for at once has more than ``HITS_AT_ONCE`` hits, unless one
        question wants more.
        """
        return [
            found for together in _portions(asked) for found in self._search(generation, together)
        ]

    def _search(self, generation: Generation, asked: Sequence[Nearest]) -> list[list[Point]]:
        requests = [
            models.QueryRequest(
                query=list(each.vector), using=ITEM, limit=each.limit, offset=each.offset,
                filter=self._passing(each.where), with_payload=list(each.fields),
                with_vector=list(each.vectors), params=self._params,
            )
            for each in asked
        ]  # fmt: skip
        return self._query(generation, requests)

    def _query(
        self, generation: Generation, requests: Sequence[models.QueryRequest]
    ) -> list[list[Point]]:
        """Return what each request finds, all asked at once."""
        found: Sequence[Sequence[ScoredRecord | models.ScoredPoint]]
        with self._refusals(generation, len(requests)):
            if self._rest:
                found = self._rest.search(generation.collection, requests)
            else:
                answers = self._client.query_batch_points(generation.collection, requests)
                found = [answer.points for answer in answers]
        return [[as_point(hit) for hit in hits] for hits in found]

    def count(self, generation: Generation, where: Filter = EVERYTHING) -> int:
        """Return the exact number of points that pass a filter."""
        with self._refusals(generation):
            return self._client.count(
                generation.collection, count_filter=self._passing(where), exact=True
            ).count

    def scroll(
        self, generation: Generation, fields: Sequence[str], where: Filter = EVERYTHING
    ) -> Iterator[Point]:
        """Walk all points that pass a filter, page by page.

        They have the payload fields that ``fields`` names, and no vectors.
        """
        offset: Any = None
        while True:
            with self._refusals(generation):
                records, offset = self._client.scroll(
                    generation.collection, self._passing(where), limit=SCROLL_PAGE, offset=offset,
                    with_payload=list(fields), with_vectors=False, consistency=MOST,
                )  # fmt: skip
            yield from map(as_point, records)
            if offset is None:
                return


def _portions(asked: Iterable[Nearest]) -> Iterator[list[Nearest]]:
    """Yield, in their order, as many together as have at most ``HITS_AT_ONCE`` hits."""
    together: list[Nearest] = []
    for each in asked:
        if together and sum(one.limit for one in together) + each.limit > HITS_AT_ONCE:
            yield together
            together = []
        together.append(each)
    if together:
        yield together


def as_point(record: models.Record | models.ScoredPoint | Record) -> Point:
    """Return a point as it is answered."""
    vectors: dict[str, Any] = record.vector if isinstance(record.vector, dict) else {}
    return Point(
        id=str(record.id),
        payload=record.payload or {},
        item=vectors.get(ITEM, ()),
        audio=vectors.get(AUDIO, ()),
        score=getattr(record, "score", 0.0),
    )
