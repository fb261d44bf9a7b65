"""Reconcile: find what the index does not know of the bucket, however the events went astray."""

from collections.abc import Iterator, Mapping
from itertools import islice

from core.index import Generation, Index
from core.items import ObjectInfo, is_audio, sidecar_keys
from core.store import Store
from workers.dead_letters import DeadLetters

FIELDS = ("bucket", "key", "etag", "sidecar_etag", "modified")
LETTERS_PER_LOOK = 500

State = tuple[str, str, int]  # etag, etag of the sidecar, modified


def differences(
    store: Store,
    index: Index,
    generation: Generation | None,
    dead_letters: DeadLetters,
    prefix: str = "",
) -> Iterator[str]:
    """Yield each audio key under ``prefix`` whose point is missing, outdated or orphaned.

    Without a ``generation`` nothing is indexed yet. Objects that were rejected in
    their present state are left alone. Holds a few hundred bytes for each object in memory.
    """
    objects = {info.key: info for info in store.list(prefix)}
    indexed = _indexed(index, generation, store.bucket, prefix) if generation else {}
    missing = []
    for key in filter(is_audio, objects):
        state = indexed.pop(key, None)
        if state is None:
            missing.append(objects[key])
        elif state != _state(objects, key):
            yield key
    yield from _not_rejected(missing, dead_letters)
    # What is left has no object any more; nor have letters of objects that went unnoticed.
    letters = (key for key in dead_letters.keys() if key.startswith(prefix))  # noqa: SIM118
    yield from indexed | dict.fromkeys(key for key in letters if _is_lost(key, objects))


def _is_lost(key: str, objects: Mapping[str, ObjectInfo]) -> bool:
    return is_audio(key) and key not in objects


def _indexed(index: Index, generation: Generation, bucket: str, prefix: str) -> dict[str, State]:
    payloads = (point.payload for point in index.scroll(generation, FIELDS))
    return {
        payload["key"]: (payload["etag"], payload["sidecar_etag"], payload["modified"])
        for payload in payloads
        if payload["bucket"] == bucket and payload["key"].startswith(prefix)
    }


def _state(objects: Mapping[str, ObjectInfo], key: str) -> State:
    sidecars = (objects.get(sidecar_key) for sidecar_key in sidecar_keys(key))
    sidecar = next(filter(None, sidecars), None)
    return objects[key].etag, sidecar.etag if sidecar else "", objects[key].modified_ms


def _not_rejected(missing: list[ObjectInfo], dead_letters: DeadLetters) -> Iterator[str]:
    remaining = iter(missing)
    while batch := list(islice(remaining, LETTERS_PER_LOOK)):
        letters = dead_letters.get(info.key for info in batch)
        for info in batch:
            letter = letters.get(info.key)
            if letter is None or letter.etag != info.etag:
                yield info.key
