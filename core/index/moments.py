"""The moments of items: in a collection beside that of their items, found item by item."""

from collections.abc import Mapping, Sequence
from typing import Any

from qdrant_client import models

from audiofuse.core.index.collection import (
    ITEM,
    ONE_ORDER,
    Generation,
    Nearest,
    Point,
    Points,
    as_point,
)
from audiofuse.core.index.conditions import conditions_of_moments, of_item
from audiofuse.core.index.rest import Group

# What tells which moment it is, and whether its item still means it.
MOMENT_FIELDS = ("item", "number", "start_s", "end_s", "state", "item_norm")


class MomentPoints(Points):
    """The moments of any generation, which every method is given as that of the items.

    Raises what ``Points`` does; ``GenerationGone`` also of a generation that an older release made
    and no worker has made whole yet.
    """

    def remove_moments(self, generation: Generation, item_id: str, beyond: int = 0) -> None:
        """Delete an item's moments whose numbers are at least ``beyond``; none is no error."""
        selected = models.FilterSelector(filter=of_item(item_id, beyond=beyond))
        moments = generation.moments
        with self._refusals(moments):
            self._client.delete(moments.collection, selected, wait=True, ordering=ONE_ORDER)

    def seal_moments(
        self, generation: Generation, item_id: str, state: str, payload: Mapping[str, Any]
    ) -> None:
        """Give an item's moments that are in a state these fields, perhaps another state."""
        moments, selected = generation.moments, of_item(item_id, state=state)
        with self._refusals(moments):
            self._client.set_payload(
                moments.collection, dict(payload), selected, wait=True, ordering=ONE_ORDER
            )

    def count_moments(self, generation: Generation, item_id: str, state: str | None = None) -> int:
        """Return the exact number of an item's moments, of all or of those that are in a state."""
        moments = generation.moments
        with self._refusals(moments):
            return self._client.count(
                moments.collection, exact=True,
                count_filter=of_item(item_id, state=state, within=self._within),
            ).count  # fmt: skip

    def nearest_moments(
        self, generation: Generation, asked: Nearest, of_each: int = 1, items: Sequence[str] = ()
    ) -> dict[str, list[Point]]:
        """Return items by their nearest moments: ids, best first, with ``of_each`` moments at most.

        ``asked.limit`` is how many items; an offset it cannot have. ``items``: of these only.
        """
        moments, passing = (
            generation.moments,
            conditions_of_moments(self.bounded(asked.where), items),
        )
        fields, vectors = list(MOMENT_FIELDS), list(asked.vectors)
        groups: Sequence[Group | models.PointGroup]
        with self._refusals(moments):
            if self._rest:
                wanted = models.QueryGroupsRequest(
                    group_by="item", query=list(asked.vector), using=ITEM, limit=asked.limit,
                    group_size=of_each, filter=passing, with_payload=fields, with_vector=vectors,
                    params=self._params,
                )  # fmt: skip
                groups = self._rest.groups(moments.collection, wanted)
            else:
                groups = self._client.query_points_groups(
                    moments.collection, "item", list(asked.vector), using=ITEM, limit=asked.limit,
                    group_size=of_each, query_filter=passing, with_payload=fields,
                    with_vectors=vectors, search_params=self._params,
                ).groups  # fmt: skip
        return {str(group.id): [as_point(hit) for hit in group.hits] for group in groups}

    def scored_moments(
        self, generation: Generation, item_id: str, state: str, vector: Sequence[float], most: int
    ) -> list[Point]:
        """Return the moments of an item in a state, in their order, each compared with a vector.

        At most ``most``, then those that are nearest to it.
        """
        moments = generation.moments
        request = models.QueryRequest(
            query=list(vector), using=ITEM, limit=most, with_payload=list(MOMENT_FIELDS),
            filter=of_item(item_id, state=state, within=self._within), params=self._params,
        )  # fmt: skip
        (found,) = self._query(moments, [request])
        return sorted(found, key=lambda each: each.payload["number"])
