"""What is asked, as the embedded engine knows it; and what it lacks: groups, one order of equals.

    the nearest points of any group ──> of groups that are not known yet, until enough are
                                    ──> of each known group that is short, what it lacks

The first point that is met of a group is its best, and groups are met in the order of these.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import qdrant_edge as edge
from qdrant_client import models

# Hits that are asked for beyond a page. More: fewer questions are asked again for the sake of equal
# scores at its end; less: less to sort.
SPARE = 16
DIRECTIONS = {models.Direction.ASC: edge.Direction.Asc, models.Direction.DESC: edge.Direction.Desc}
# Points of the first ask. More: it costs more; less: more asks where few groups have the nearest.
AT_ONCE = 100
GROWTH = 5  # and of each further ask, times those of the one before
# Answers with at most so many points, nearest first, of those that pass no condition of some; their
# payloads have the field by which they are grouped.
Ask = Callable[[Sequence[Any], int], Sequence[Any]]
# Answers, for each of some conditions, with at most so many points that pass it, nearest first.
AskEach = Callable[[Sequence[Any], int], Sequence[list[Any]]]


def page_of(
    met: Sequence[Any], ask: Callable[[int], Sequence[Any]], offset: int, limit: int
) -> list[Any]:
    """Return the hits of a page in an order of which every page is a part: equal scores by id.

    The engine returns some of those that are equal, which ones depends on how many it is asked for.
    So ``met``, the first ``offset + limit + SPARE``, may not end among those that are equal to the
    last of the page; ``ask`` returns as many as it is asked for.
    """
    reach = offset + limit
    asked = reach + SPARE
    while len(met) == asked and met[-1].score == met[reach - 1].score:
        asked *= 2
        met = ask(asked)
    return sorted(met, key=lambda hit: (-hit.score, str(hit.id)))[offset:reach]


def grouped(
    ask: Ask, ask_each: AskEach, field: str, groups: int, size: int
) -> dict[str | int, list[Any]]:
    """Return the best points of the best groups, at most ``size`` of each, best first.

    Points without the field are in no group. Raises ``ValueError`` for a field of several values.
    """
    limit = max(AT_ONCE, groups)
    found: dict[str | int, list[Any]] = {}
    besides: list[Any] = []  # nothing at first: each condition is asked of every point
    more = True
    while more and len(found) < groups:
        met = ask(besides, limit)
        more, limit = len(met) == limit, limit * GROWTH
        _add(found, met, field)
        besides = [edge.IsEmptyCondition(field), _in(field, found)]
    best = dict(list(found.items())[:groups])
    short = [each for each, points in best.items() if len(points) < size]
    filled = ask_each([_is(field, each) for each in short], size) if short else []
    best |= zip(short, filled, strict=True)
    return {each: points[:size] for each, points in best.items()}


def _is(field: str, group: str | int) -> edge.FieldCondition:
    return edge.FieldCondition(field, match=edge.MatchValue(group))


def _in(field: str, groups: Any) -> edge.FieldCondition:
    return edge.FieldCondition(field, match=edge.MatchAny(list(groups)))


def _add(found: dict[str | int, list[Any]], met: Sequence[Any], field: str) -> None:
    for point in met:
        value = point.payload.get(field)
        if value in (None, []):
            continue
        if not isinstance(value, str | int):
            told = f"the embedded index groups by text or integers, not by {value!r}"
            raise ValueError(told)  # noqa: TRY004 - as of all that cannot be asked
        found.setdefault(value, []).append(point)


def query_of(asked: models.QueryRequest | models.QueryGroupsRequest) -> Any:
    """Return what is asked; ``ValueError`` unless it is a vector, or points by chance."""
    if isinstance(asked.query, models.SampleQuery):
        return edge.Sample.Random
    vector = getattr(asked.query, "nearest", asked.query)
    if isinstance(vector, list):
        return edge.Query.Nearest(cast("list[float]", vector), asked.using)
    raise ValueError(f"the embedded index is asked by a vector, not by {type(vector).__name__}")


def order_of(wanted: Any) -> edge.OrderBy | None:
    """Return in which order to scroll; a field's name alone means upwards."""
    if wanted is None:
        return None
    by = models.OrderBy(key=wanted) if isinstance(wanted, str) else wanted
    return edge.OrderBy(by.key, DIRECTIONS[by.direction or models.Direction.ASC])


def filter_of(wanted: models.Filter | None) -> edge.Filter | None:
    """Return a filter; raises ``ValueError`` for one that the engine might not understand."""
    if wanted is None:
        return None
    must, should, must_not = (
        [_condition(each) for each in (some if isinstance(some, list) else [some])]
        if some
        else None
        for some in (wanted.must, wanted.should, wanted.must_not)
    )
    return edge.Filter(must=must, should=should, must_not=must_not)


def _condition(wanted: Any) -> Any:
    """Translate a condition; raises ``ValueError`` for one that the engine might not understand."""
    match wanted:
        case models.Filter():
            return filter_of(wanted)
        case models.HasIdCondition():
            return edge.HasIdCondition(set(wanted.has_id))
        case models.FieldCondition(range=models.Range() as bounds):
            return edge.FieldCondition(wanted.key, range=edge.RangeFloat(**bounds.model_dump()))
        case models.FieldCondition(match=asked) if match_ := _match(asked):
            return edge.FieldCondition(wanted.key, match=match_)
    raise ValueError(f"the embedded index does not know this condition: {wanted!r}")


def _match(wanted: Any) -> Any:
    match wanted:
        case models.MatchValue(value=bool()):
            return None  # it is taken, but nothing ever matches it
        case models.MatchValue(value=value):
            return edge.MatchValue(value)
        case models.MatchAny(any=values):
            return edge.MatchAny(values)
        case models.MatchExcept(except_=values):
            return edge.MatchExcept(values)
        case models.MatchPrefix(prefix=prefix):
            return edge.MatchPrefix(prefix)
    return None
