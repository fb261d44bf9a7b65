"""Points in groups, which the embedded engine lacks, as a server of Qdrant answers them.

    the nearest points of any group ──> of groups that are not known yet, until enough are
                                    ──> of known groups that are short, until they are full

The first point that is met of a group is its best, and groups are met in the order of these.
"""

from collections.abc import Callable, Sequence
from typing import Any

import qdrant_edge as edge

# Points an ask. More: each costs more; less: more of them where few groups have the nearest points.
AT_ONCE = 1000
# Answers with at most so many points, nearest first, what passes a filter; their payloads have the
# field by which they are grouped.
Ask = Callable[[edge.Filter, int], Sequence[Any]]


def grouped(ask: Ask, field: str, groups: int, size: int) -> dict[str | int, list[Any]]:
    """Return the best points of the best groups, at most ``size`` of each, best first.

    Points without the field are in no group. Raises ``ValueError`` for a field of several values.
    """
    limit = max(AT_ONCE, groups * size)
    found: dict[str | int, list[Any]] = {}
    none = edge.IsEmptyCondition(field)
    more = True
    while more and len(found) < groups:
        met = ask(edge.Filter(must_not=[none, _in(field, found)]), limit)
        more = len(met) == limit
        _add(found, met, field)
    best = dict(list(found.items())[:groups])
    more = True
    while more and (short := {each for each, points in best.items() if len(points) < size}):
        known = {point.id for each in short for point in best[each]}
        besides: list[Any] = [edge.HasIdCondition(known)]
        met = ask(edge.Filter(must=[_in(field, short)], must_not=besides), limit)
        more = len(met) == limit
        _add(best, met, field)
    return {each: points[:size] for each, points in best.items()}


def _in(field: str, groups: Any) -> edge.FieldCondition:
    return edge.FieldCondition(field, match=edge.MatchAny(list(groups)))


def _add(found: dict[str | int, list[Any]], met: Sequence[Any], field: str) -> None:
    for point in met:
        value = point.payload[field]
        if not isinstance(value, str | int):
            told = f"the embedded index groups by text or integers, not by {value!r}"
            raise ValueError(told)  # noqa: TRY004 - as of all that cannot be asked
        found.setdefault(value, []).append(point)
