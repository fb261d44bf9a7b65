"""Many answers made one.

Scores of one encoder version are comparable, so hits are merged by score: whatever is among the
first n of all is among the first n of the member that has it. Of members with different versions
those speak for the federation whose version most have; of two that as many have it is that of the
member who is named first.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote

from audiofuse.core.query import Sort
from audiofuse.core.search.catalogue import ORDERS
from audiofuse.workers.federation.members import Missing
from audiofuse.workers.federation.models import (
    FacetsOfAll,
    FoundByAll,
    ItemsOfAll,
    SelectionOfAll,
    named,
)
from audiofuse.workers.service.admission.guard import AUDIO_PATH
from audiofuse.workers.service.catalogue import (
    FacetsAnswer,
    FacetsQuery,
    ItemsAnswer,
    ItemsQuery,
    LengthAnswer,
    ValueAnswer,
    YearAnswer,
)
from audiofuse.workers.service.models import (
    FoundAnswer,
    HitAnswer,
    ItemAnswer,
    Options,
    SelectionAnswer,
)

T = TypeVar("T")
Place = tuple[float, str]  # of an item in an order: its value, turned round if need be, and its id
VALUES = ("labels", "keywords", "has_text", "folders")
MOST_VERSION_CHARACTERS = 100


def agreed(versions: Iterable[str | None]) -> str | None:
    """Return the version that most have, of equal ones the first; ``None`` if nobody has any."""
    counts = Counter(each for each in versions if each)
    return max(counts, key=lambda each: counts[each], default=None)


def found(
    told: Mapping[str, FoundAnswer], missing: Sequence[Missing], asked: Options
) -> FoundByAll:
    """Return a page of all hits; ``told`` has each member's, from the first up to the page's end.

    A member of another version than the agreed one has no part in it.
    """
    version = agreed(each.encoder for each in told.values())
    alike = {name: each for name, each in told.items() if each.encoder in {version, None}}
    others = [
        Missing(name, f"speaks encoder {_short(each.encoder)}, not {version}")
        for name, each in told.items()
        if name not in alike
    ]
    lacking = [*missing, *others]
    hits = _merged(alike)
    if asked.unique:
        hits = _unique(hits)
    return FoundByAll(
        encoder=version,
        nothing=_nothing(alike.values(), asked, is_whole=not lacking),
        hits=hits[asked.offset : asked.offset + asked.limit],
        partial=named(lacking),
    )


def _short(version: str | None) -> str:
    return (version or "")[:MOST_VERSION_CHARACTERS]


def _merged(told: Mapping[str, FoundAnswer]) -> list[HitAnswer]:
    """Return all hits, best first; an item that two members have is the first one's."""
    owners: dict[str, str] = {}
    hits: list[HitAnswer] = []
    for name, answer in told.items():
        hits += [hit for hit in answer.hits if owners.setdefault(hit.id, name) == name]
    return sorted(hits, key=lambda hit: (-hit.score, hit.id))


def _unique(hits: Sequence[HitAnswer]) -> list[HitAnswer]:
    """Return the hits of the best item of each content, with the keys of the other items."""
    best: dict[str, str] = {}  # item by content
    copies: dict[str, list[str]] = {}
    kept = []
    for hit in hits:
        content = str(hit.payload.get("content_hash") or hit.id)
        first = best.setdefault(content, hit.id)
        keys = hit.copies if hit.id == first else [hit.key, *hit.copies]
        known = copies.setdefault(first, [])
        known += [key for key in keys if key not in known]
        if hit.id == first:
            kept.append(hit)
    return [hit.model_copy(update={"copies": copies[hit.id]}) for hit in kept]


def _nothing(told: Iterable[FoundAnswer], asked: Options, *, is_whole: bool) -> bool | None:
    """Whether nothing of all answers the question: every member must say so, and none be missing.

    Behind the first page that is not known, but where hits are chosen by their relevance.
    """
    chosen = asked.min_relevance is not None
    if asked.offset and not chosen:
        return None
    said = [each.nothing for each in told if chosen or each.hits]
    if False in said:
        return False
    return True if said and all(said) and is_whole else None


def items(
    told: Mapping[str, ItemsAnswer], missing: Sequence[Missing], asked: ItemsQuery
) -> ItemsOfAll:
    """Return a page of all items; ``told`` has each member's page from the same place on."""
    listed = [each for answer in told.values() for each in answer.found]
    following = ""
    if asked.sort is Sort.RANDOM:
        page = _drawn(list(told.values()), asked.limit)
    else:
        places = {id(each): _place(each, asked.sort) for each in listed}
        listed.sort(key=lambda each: places[id(each)])
        page = listed[: asked.limit]
        beyond = [places[id(each)] for each in listed[asked.limit : asked.limit + 1]]
        beyond += [_begin(each.next, asked.sort) for each in told.values() if each.next]
        following = _after(min(beyond), asked.sort) if beyond else ""
    return ItemsOfAll(
        items=sum(each.items for each in told.values()),
        encoder=agreed(each.encoder for each in told.values()),
        found=page,
        next=following,
        partial=named(missing),
    )


def _drawn(told: Sequence[ItemsAnswer], limit: int) -> list[ItemAnswer]:
    """Draw from all items, of each member as often as it has some, from what it has drawn."""
    counts = [each.items for each in told]
    drawn = random.sample(range(len(told)), min(limit, sum(counts)), counts=counts)
    drawers = [iter(each.found) for each in told]
    picked = (next(drawers[number], None) for number in drawn)
    return [each for each in picked if each]


def check_page(page: ItemsAnswer, sort: Sort) -> None:
    """Raise ``ValueError`` if a page, or where the next one begins, has no place in an order."""
    if page.items < 0:
        raise ValueError("less than no items")
    if sort is Sort.RANDOM:
        return
    for each in page.found:
        _place(each, sort)
    if page.next:
        _begin(page.next, sort)


def _place(item: ItemAnswer, sort: Sort) -> Place:
    order = ORDERS[sort]
    return _placed(item.payload.get(order.field) if order else 0, item.id, sort)


def _begin(after: str, sort: Sort) -> Place:
    """Return the place that a member's next page begins with."""
    value, _, id_ = after.rpartition("~")
    number = int(value) if value.removeprefix("-").isdecimal() else float(value or 0)
    return _placed(number, id_, sort)


def _placed(value: object, id_: str, sort: Sort) -> Place:
    if not isinstance(value, int | float):
        raise ValueError(f"{str(value)[:40]!r} has no place among numbers")  # noqa: TRY004 - data
    order = ORDERS[sort]
    return (-value if order and order.descending else value), id_


def _after(place: Place, sort: Sort) -> str:
    """Return what a page from this place on is asked for, of every member."""
    value, id_ = place
    order = ORDERS[sort]
    if order is None:
        return f"~{id_}"
    return f"{-value if order.descending else value!r}~{id_}"


def selection(
    told: Mapping[str, SelectionAnswer], missing: Sequence[Missing], ids: Sequence[str]
) -> SelectionOfAll:
    """Return items of all members in the order of their ids."""
    known = {each.id: each for answer in told.values() for each in answer.items}
    return SelectionOfAll(
        items=[known[id_] for id_ in dict.fromkeys(ids) if id_ in known], partial=named(missing)
    )


def facets(
    told: Mapping[str, FacetsAnswer], missing: Sequence[Missing], asked: FacetsQuery
) -> FacetsOfAll:
    """Return sums; of values the commonest."""
    all_ = list(told.values())
    return FacetsOfAll(
        items=sum(each.items for each in all_),
        encoder=agreed(each.encoder for each in all_),
        lengths=_lengths([each.lengths for each in all_]),
        years=_years([each.years for each in all_]),
        **{name: _values([getattr(each, name) for each in all_], asked.limit) for name in VALUES},
        folders_complete=all(each.folders_complete for each in all_),
        partial=named(missing),
    )


def _asked_for(parts: Sequence[Sequence[T] | None]) -> list[T] | None:
    """Return the parts of all members together; ``None`` if they were not asked for."""
    told = [part for part in parts if part is not None]
    return [each for part in told for each in part] if told else None


def _values(parts: Sequence[list[ValueAnswer] | None], limit: int) -> list[ValueAnswer] | None:
    values = _asked_for(parts)
    if values is None:
        return None
    counts = Counter[str]()
    for each in values:
        counts[each.value] += each.items
    first = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:limit]
    return [ValueAnswer(value=value, items=count) for value, count in first]


def _lengths(parts: Sequence[list[LengthAnswer] | None]) -> list[LengthAnswer] | None:
    spans = _asked_for(parts)
    if spans is None:
        return None
    counts = Counter[tuple[float, float | None]]()
    for each in spans:
        counts[each.min_duration, each.max_duration] += each.items
    return [
        LengthAnswer(min_duration=shortest, max_duration=longest, items=count)
        for (shortest, longest), count in sorted(counts.items(), key=lambda each: each[0][0])
    ]


def _years(parts: Sequence[list[YearAnswer] | None]) -> list[YearAnswer] | None:
    years = _asked_for(parts)
    if years is None:
        return None
    counts = Counter[int]()
    for each in years:
        counts[each.year] += each.items
    return [
        YearAnswer(year=year, items=count) for year, count in sorted(counts.items(), reverse=True)
    ]


def link(member: str, url: str | None, root: str) -> str | None:
    """Return where a member's sound is heard: what it serves itself through us, else its storage.

    Without our help nobody may reach a member; what is neither is no link.
    """
    if not url:
        return None
    if url.startswith("/"):
        _, found_, rest = url.partition(AUDIO_PATH)
        return f"{root}{AUDIO_PATH}{quote(member, safe='')}/{rest}" if found_ else None
    return url if url.startswith(("https://", "http://")) else None
