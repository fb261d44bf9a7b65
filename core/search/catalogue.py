"""What there is, without a question: items page by page, what they have in common, duplicates.

Nothing here takes longer or holds more the larger the index is, but for what Qdrant counts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from audiofuse.core.errors import QueryError
from audiofuse.core.index.collection import HIT_FIELDS
from audiofuse.core.index.index import Generation, Index, Nearest, Order, Page, Point
from audiofuse.core.query import EVERYTHING, Filter, Sort
from audiofuse.core.search.search import Searcher

ORDERS = {
    Sort.ID: None,
    Sort.NEWEST: Order("modified", descending=True),
    Sort.OLDEST: Order("modified"),
    Sort.LONGEST: Order("duration_s", descending=True),
    Sort.SHORTEST: Order("duration_s"),
}
STEPS_S = (1, 5, 15, 30, 60, 300, 1800)  # where one class of lengths ends and the next begins
# Durations are indexed in milliseconds, and a filter's bounds are part of what they let through.
JUST_BELOW_S = 0.001
MOST_YEARS = 50
# Points that are looked at for folders. Higher: folders are found beside more sounds that lie
# directly in the one that is looked into; lower: a sooner answer for such a folder.
FOLDERS_LOOK = 20_000
FOLDERS_PAGE = 1000
MOST_FOLDERS = 200
MOST_GROUPS = 1000  # groups of the same content that can be paged through: values that are counted
GROUP_SHOWN = 20  # items of a group that are told
STRETCH = 50  # items whose neighbours one answer looks for
NEIGHBOURS = 10  # of each item, by its item vector, that are compared by sound
EXPORT_PAGE = 500


@dataclass(frozen=True)
class Listed:
    """One page of items, how many there are in all, and with what the next page is asked for."""

    encoder: str | None = None
    count: int = 0
    points: Sequence[Point] = ()
    following: str = ""


@dataclass(frozen=True)
class Span:
    """Lengths in s, both included, and how many items have one of them; the last has no end."""

    shortest: float
    longest: float | None
    count: int


@dataclass(frozen=True)
class Facets:
    """What items have in common, with how many have it; only what was asked for.

    ``folders`` are those in the folder that the filter's prefix names, by how their keys begin;
    ``folders_complete`` is false where so many sounds lie directly in it that some may be missed.
    """

    encoder: str | None = None
    count: int = 0
    values: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    lengths: Sequence[Span] = ()
    years: Mapping[int, int] = field(default_factory=dict)
    folders: Mapping[str, int] = field(default_factory=dict)
    folders_complete: bool = True


@dataclass(frozen=True)
class Group:
    """Items that are alike: how many, the first of them, and how like each is to the first."""

    count: int
    points: Sequence[Point]
    likeness: Sequence[float]


@dataclass(frozen=True)
class Groups:
    """Groups, and with what the next are asked for."""

    encoder: str | None = None
    groups: Sequence[Group] = ()
    following: str = ""


class Catalogue:
    """Looks through the live generation. Every method raises what ``Searcher.search`` does."""

    VALUES = ("labels", "keywords", "has_text")
    FACETS = (*VALUES, "lengths", "years", "folders")

    def __init__(self, searcher: Searcher) -> None:
        """Look through what ``searcher`` searches."""
        self._with_index = searcher.with_index

    def page(
        self, where: Filter = EVERYTHING, sort: Sort = Sort.ID, limit: int = 20, after: str = "",
        *, extra: bool = False,
    ) -> Listed:  # fmt: skip
        """Return a page of items; ``after`` is ``following`` of the page before.

        Items that come and go on the way do no harm: the others are met once. In a random order
        there is no next page.
        """
        fields = [*HIT_FIELDS, *(["extra"] if extra else [])]

        def look(index: Index, live: Generation) -> Listed:
            if sort is Sort.RANDOM:
                page = Page(index.sample(live, fields, where, limit))
            else:
                page = index.page(live, fields, where, ORDERS[sort], limit, after)
            return Listed(live.version, index.count(live, where), page.points, page.following)

        return self._with_index(look) or Listed()

    def facets(
        self, where: Filter = EVERYTHING, wanted: Iterable[str] = FACETS, limit: int = 20
    ) -> Facets:
        """Return what the items that pass a filter have in common; of values the commonest."""
        names = set(wanted)

        def look(index: Index, live: Generation) -> Facets:
            count = partial(index.count, live)
            folders, complete = _folders(index, live, where) if "folders" in names else ([], True)
            return Facets(
                live.version,
                count(where),
                {
                    name: index.facet(live, name, where, limit)
                    for name in self.VALUES
                    if name in names
                },
                list(_lengths(count, where)) if "lengths" in names else (),
                dict(_years(index, live, where)) if "years" in names else {},
                _commonest({each: count(replace(where, prefix=each)) for each in folders}, limit),
                complete,
            )

        return self._with_index(look) or Facets()

    def same(self, where: Filter = EVERYTHING, limit: int = 20, after: str = "") -> Groups:
        """Return groups of items whose objects have the same bytes, the largest first."""
        offset = _offset(after)

        def look(index: Index, live: Generation) -> Groups:
            most = min(offset + limit + 1, MOST_GROUPS)
            counted = index.facet(live, "content_hash", where, most)
            several = [each for each in counted.items() if each[1] > 1]
            shown, beyond = several[offset : offset + limit], several[offset + limit :]
            groups = [_same(index, live, where, *each) for each in shown]
            following = str(offset + limit) if beyond else ""
            return Groups(live.version, [each for each in groups if each.count > 1], following)

        return self._with_index(look) or Groups()

    def alike(self, where: Filter = EVERYTHING, least: float = 0.98, after: str = "") -> Groups:
        """Return items that sound alike, of a stretch of all items; ``following`` is the next one.

        Those among the neighbours of an item whose audio vectors have a cosine of at least
        ``least``. Each pair is told once, with the one of the smaller id.
        """

        def look(index: Index, live: Generation) -> Groups:
            page = index.page(live, ["key"], where, None, STRETCH, after)
            found = index.get(live, [each.id for each in page.points], vectors=True)
            asked = [
                Nearest(each.item, NEIGHBOURS, where=replace(where, besides=(each.id,)))
                for each in found.values()
            ]
            answers = zip(found.values(), index.search(live, asked), strict=True)
            groups = (_alike(first, hits, least) for first, hits in answers)
            return Groups(live.version, [each for each in groups if each.count > 1], page.following)

        return self._with_index(look) or Groups()

    def walk(self, where: Filter = EVERYTHING, after: str = "") -> Iterator[list[Point]]:
        """Walk all items with all that is known of them, some at a time, in the order of ids.

        ``after`` is the id of an item that was met before: the walk goes on behind it. Raises
        ``GenerationGone`` once another encoder is live and this generation is dropped.
        """
        begun = self._with_index(lambda index, live: (index, live))
        if begun is None:
            return
        index, live = begun
        following = f"~{after}" if after else ""
        while True:
            page = index.page(live, [*HIT_FIELDS, "extra"], where, None, EXPORT_PAGE, following)
            if points := [each for each in page.points if each.id != after]:
                yield points
            following = page.following
            if not following:
                return


def _lengths(count: Any, where: Filter) -> Iterator[Span]:
    ends = [step - JUST_BELOW_S for step in STEPS_S]
    for shortest, longest in zip((0, *STEPS_S), (*ends, None), strict=True):
        within = _bounded(where, shortest, longest)
        if number := count(within) if within else 0:
            yield Span(shortest, longest, number)


def _bounded(where: Filter, shortest: float, longest: float | None) -> Filter | None:
    """Return a filter for lengths that pass another one, too; ``None`` if there are none."""
    least = max(shortest, where.min_duration_s or 0)
    bounds = [each for each in (longest, where.max_duration_s) if each is not None]
    most = min(bounds, default=None)
    if most is not None and most < least:
        return None
    return replace(where, min_duration_s=least, max_duration_s=most)


def _years(index: Index, live: Generation, where: Filter) -> Iterator[tuple[int, int]]:
    """Yield the latest years (UTC) of modification that items have, and how many have each."""
    ends = [
        index.page(live, [], where, ORDERS[sort], 1).points for sort in (Sort.NEWEST, Sort.OLDEST)
    ]
    if not all(ends):
        return
    last, first = (_year(points[0].payload["modified"]) for points in ends)
    for year in range(last, max(first, last - MOST_YEARS + 1) - 1, -1):
        begin, end = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
        within = replace(
            where, since=max(begin, where.since or begin), until=min(end, where.until or end)
        )
        if count := index.count(live, within):
            yield year, count


def _year(ms: int) -> int:
    return datetime.fromtimestamp(ms / 1000, UTC).year


def _folders(index: Index, live: Generation, where: Filter) -> tuple[list[str], bool]:
    """Return the folders right below the one that the prefix names, and whether these are all.

    All points are walked, but for those in a folder that is known by then: so what costs are
    the sounds that lie in no folder.
    """
    above = where.prefix[: where.prefix.rfind("/") + 1]
    found: dict[str, None] = {}
    following = ""
    for _ in range(FOLDERS_LOOK // FOLDERS_PAGE):
        beside = replace(where, outside=(*where.outside, *found))
        page = index.page(live, ["key"], beside, None, FOLDERS_PAGE, following)
        keys = (each.payload["key"][len(above) :] for each in page.points)
        found |= {f"{above}{key[: key.find('/') + 1]}": None for key in keys if "/" in key}
        following = page.following
        if not following or len(found) >= MOST_FOLDERS:
            break
    return list(found)[:MOST_FOLDERS], not following and len(found) <= MOST_FOLDERS


def _commonest(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:limit])


def _same(index: Index, live: Generation, where: Filter, content_hash: str, count: int) -> Group:
    """Return the items of a content; of so many that not all are shown the ``count`` is kept."""
    alike = replace(where, content_hash=content_hash)
    points = index.page(live, HIT_FIELDS, alike, None, GROUP_SHOWN).points
    number = count if len(points) == GROUP_SHOWN else len(points)
    return Group(number, points, [1.0] * len(points))


def _alike(first: Point, hits: Iterable[Point], least: float) -> Group:
    own = np.array(first.audio)
    near = [
        (each, likeness)
        for each in hits
        if each.id > first.id and (likeness := _cosine(own, np.array(each.audio))) >= least
    ]
    points = [first, *(each for each, _ in near)]
    return Group(len(points), points, [1.0, *(likeness for _, likeness in near)])


def _cosine(one: Any, other: Any) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths else 0.0


def _offset(after: str) -> int:
    if after and not (after.isdecimal() and int(after) < MOST_GROUPS):
        raise QueryError(f"{after[:40]!r} is the end of no page of groups")
    return int(after or 0)
