"""Walking through the points of a generation, and counting what they have in common.

Qdrant orders points by a field, but cannot go on among many that share a value, as clips of five
seconds do. So a page ends with those of one value in the order of their ids, and the next one goes
on among them:

    of the value that the page before ended in, by id ──> beyond it, by value ──> of the last
                                                          value, by id
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdrant_client import models

from audiofuse.core.errors import QueryError
from audiofuse.core.index.collection import Generation, Point, Points, as_point
from audiofuse.core.index.conditions import conditions
from audiofuse.core.query import EVERYTHING, Filter, check_id


@dataclass(frozen=True)
class Order:
    """By which field of numbers, and in which direction. All points must have that field."""

    field: str
    descending: bool = False


@dataclass(frozen=True)
class Page:
    """Points, and with what the next page is asked for; empty after the last one."""

    points: list[Point]
    following: str = ""


class BrowsedPoints(Points):
    """Points that are looked through without a vector to compare them with."""

    def facet(
        self, generation: Generation, field: str, where: Filter = EVERYTHING, limit: int = 10
    ) -> dict[str, int]:
        """Return the commonest values of a keyword field with how many points have each.

        While Qdrant moves points from one segment to another the numbers may be a little off.
        """
        with self._refusals(generation):
            found = self._client.facet(
                generation.collection, field, self._passing(where), limit=limit, exact=False
            )
        return {str(hit.value): hit.count for hit in found.hits}

    def sample(
        self, generation: Generation, fields: Sequence[str], where: Filter, limit: int
    ) -> list[Point]:
        """Return points by chance, each at most once."""
        chance = models.SampleQuery(sample=models.Sample.RANDOM)
        request = models.QueryRequest(
            query=chance, limit=limit, filter=self._passing(where), with_payload=list(fields)
        )
        with self._refusals(generation):
            (found,) = self._client.query_batch_points(generation.collection, [request])
        return [as_point(each) for each in found.points]

    def page(  # noqa: PLR0913, PLR0917 - what, of which, in which order, and which part of it
        self, generation: Generation, fields: Sequence[str], where: Filter = EVERYTHING,
        order: Order | None = None, limit: int = 10, after: str = "",
    ) -> Page:  # fmt: skip
        """Return one page of the points that pass a filter; without an ``order`` by their ids.

        ``after`` is what the page before gave as ``following``; ``QueryError`` if none did.
        """
        value, _, id_ = after.rpartition("~")
        if after:
            check_id(id_)
        asked = [*fields, *([order.field] if order else [])]
        walk = _Walk(self, generation, asked, self.bounded(where))
        if order:
            found = walk.ordered(order, _number(value) if after else None, id_, limit + 1)
        else:
            found = walk.by_id(limit + 1, id_)
        page, beyond = found[:limit], found[limit:]
        if not beyond:
            return Page(page)
        (first,) = beyond
        said = repr(first.payload[order.field]) if order else ""
        return Page(page, f"{said}~{first.id}")

    def scrolled(  # noqa: PLR0913, PLR0917 - as above
        self, generation: Generation, fields: Sequence[str], passing: models.Filter | None,
        limit: int, offset: str = "", order: models.OrderBy | None = None,
    ) -> list[Point]:  # fmt: skip
        """Return some points: from an id on, or the first by an order."""
        with self._refusals(generation):
            records, _ = self._client.scroll(
                generation.collection, passing, limit=limit, offset=offset or None,
                order_by=order, with_payload=list(fields), with_vectors=False,
            )  # fmt: skip
        return [as_point(each) for each in records]


@dataclass(frozen=True)
class _Walk:
    """Which points are walked, and what is told of them."""

    points: BrowsedPoints
    generation: Generation
    fields: list[str]
    where: Filter

    def by_id(
        self, limit: int, first: str = "", of: models.FieldCondition | None = None
    ) -> list[Point]:
        return self.points.scrolled(
            self.generation, self.fields, _narrowed(self.where, of), limit, first
        )

    def ordered(self, order: Order, value: float | None, first: str, limit: int) -> list[Point]:
        """Return points from the one called ``first`` on, which has this value."""
        of_value = [] if value is None else self.by_id(limit, first, _exactly(order.field, value))
        missing = limit - len(of_value)
        if missing <= 0:
            return of_value
        beyond = None if value is None else _beyond(order, value)
        direction = models.Direction.DESC if order.descending else models.Direction.ASC
        found = self.points.scrolled(
            self.generation, self.fields, _narrowed(self.where, beyond), missing,
            order=models.OrderBy(key=order.field, direction=direction),
        )  # fmt: skip
        if not found:
            return of_value
        last = found[-1].payload[order.field]
        before = [each for each in found if each.payload[order.field] != last]
        of_last = self.by_id(missing - len(before), of=_exactly(order.field, last))
        return [*of_value, *before, *of_last]


def _narrowed(where: Filter, condition: models.FieldCondition | None) -> models.Filter | None:
    passing = conditions(where)
    if condition is None:
        return passing
    return models.Filter(must=[condition, *([passing] if passing else [])])


def _exactly(field: str, value: float) -> models.FieldCondition:
    return models.FieldCondition(key=field, range=models.Range(gte=value, lte=value))


def _beyond(order: Order, value: float) -> models.FieldCondition:
    beyond: dict[str, Any] = {"lt" if order.descending else "gt": value}
    return models.FieldCondition(key=order.field, range=models.Range(**beyond))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise QueryError(f"{text[:40]!r} is the end of no page in this order")
    return value
