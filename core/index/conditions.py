"""Which points are meant, as Qdrant knows it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from qdrant_client import models

from audiofuse.core.query import Filter, Places

# What a filter compares: an item's payload has these fields, and each of its moments has them, too.
FILTERED = (
    "bucket", "key", "keywords", "labels", "has_text", "duration_s", "modified", "content_hash",
)  # fmt: skip


def conditions(where: Filter) -> models.Filter | None:
    """Return a filter as Qdrant knows it; ``None`` if it lets everything through."""
    texts = {
        "bucket": [where.bucket] if where.bucket else [],
        "keywords": where.keywords,
        "labels": where.labels,
        "has_text": [] if where.has_text is None else ["yes" if where.has_text else "no"],
        "content_hash": [where.content_hash] if where.content_hash else [],
    }
    must = [_is(name, value) for name, values in texts.items() for value in values]
    must += [_begins(where.prefix)] if where.prefix else []
    must += _inside(where.within)
    ranges = {
        "duration_s": models.Range(gte=where.min_duration_s, lte=where.max_duration_s),
        "modified": models.Range(gte=_ms(where.since), lt=_ms(where.until)),
    }
    must += [
        models.FieldCondition(key=name, range=bounds)
        for name, bounds in ranges.items()
        if bounds != models.Range()
    ]
    must_not = [_begins(prefix) for prefix in where.outside]
    if where.besides:
        must_not.append(models.HasIdCondition(has_id=list(where.besides)))
    return models.Filter(must=must, must_not=must_not) if must or must_not else None


def _is(name: str, value: str) -> models.Condition:
    return models.FieldCondition(key=name, match=models.MatchValue(value=value))


def _begins(prefix: str) -> models.Condition:
    return models.FieldCondition(key="key", match=models.MatchPrefix(prefix=prefix))


def _inside(within: Places) -> list[models.Condition]:
    """Return what lets through what lies in one of some places; of no place nothing at all.

    A bucket is named once for all its places: each condition is asked of each point.
    """
    if within is None:
        return []
    prefixes: dict[str, list[str]] = {}
    for place in within:
        prefixes.setdefault(place.bucket, []).append(place.prefix)
    parts = [_in_bucket(bucket, each) for bucket, each in prefixes.items()]
    match parts:
        case []:  # an empty ``should`` would let everything through
            return [models.HasIdCondition(has_id=[])]
        case [only]:
            return only
    return [models.Filter(should=[models.Filter(must=part) for part in parts])]


def _in_bucket(bucket: str, prefixes: Sequence[str]) -> list[models.Condition]:
    begins = [_begins(each) for each in prefixes]
    any_: models.Condition = models.Filter(should=begins) if len(begins) > 1 else begins[0]
    return [_is("bucket", bucket), any_] if bucket else [any_]


def conditions_of_moments(where: Filter, items: Sequence[str] = ()) -> models.Filter | None:
    """Return the same for moments: ``besides`` are items, and ``items`` are the only ones meant."""
    passing = conditions(replace(where, besides=()))
    must: list[models.Condition] = [*([passing] if passing else []), *_of_any(items)]
    must_not = _of_any(where.besides)
    return models.Filter(must=must, must_not=must_not) if must or must_not else None


def _of_any(items: Sequence[str]) -> list[models.Condition]:
    matching = models.MatchAny(any=list(items))
    return [models.FieldCondition(key="item", match=matching)] if items else []


def of_item(
    item_id: str, *, beyond: int | None = None, state: str | None = None, within: Places = None
) -> models.Filter:
    """Return which moments are an item's, of numbers from ``beyond`` on, and in a state."""
    must = [_is("item", item_id), *_inside(within)]
    if beyond is not None:
        must.append(models.FieldCondition(key="number", range=models.Range(gte=beyond)))
    if state is not None:
        must.append(_is("state", state))
    return models.Filter(must=must)


def _ms(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp() * 1000
