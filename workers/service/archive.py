"""Sounds with their sidecars as one ZIP file, made while it is sent; sidecars with new labels."""

import json
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field

from audiofuse.core.errors import ObjectChanged, Rejected, Unavailable
from audiofuse.core.items import MAX_SIDECAR_BYTES, ObjectInfo, is_audio, sidecar_keys
from audiofuse.core.search.search import Searcher
from audiofuse.core.storage.store import Store
from audiofuse.workers.service.admission.keys import Right
from audiofuse.workers.service.admission.problems import ANY, Refusal, answers
from audiofuse.workers.service.admission.seen import Seen
from audiofuse.workers.service.admission.streams import Streams
from audiofuse.workers.service.models import Id, Selection, Tags

log = logging.getLogger(__name__)

# Bytes of one file's sounds. Higher: more at once, all of which a browser keeps until it has the
# whole file.
MOST_BYTES = 4 * 1024**3
CHUNK_BYTES = 256 * 1024
NAME = "sounds.zip"
SIDECARS = "sidecars.zip"
MOST_SIDECARS = 100  # of one file: what is asked with fits a body
WORDS = ("title", "description", "keywords")  # what a sidecar keeps beside its labels
LEFT_OUT = "left-out.txt"  # tells within the file what is not whole in it
WHY = "it was replaced or deleted, or cannot be read now"
EARLIEST_S = 315_532_800  # 1980: ZIP knows no earlier time
ZIP: dict[int | str, dict[str, Any]] = {200: {"content": {"application/zip": {}}}}


@dataclass(frozen=True)
class Taken:
    """A sound that is taken along."""

    key: str
    size: int
    has_sidecar: bool


class ChosenLabels(BaseModel):
    """Labels that somebody chose for an item."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: Id
    labels: Tags = Field(description="All that the item shall have.", examples=[["Dog"]])


class Chosen(BaseModel):
    """Labels for several items."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    items: list[ChosenLabels] = Field(min_length=1, max_length=MOST_SIDECARS)


def archive_routes(seen: Seen, store: Store | None) -> APIRouter:
    """Return the route that gives sounds of ``store`` as a ZIP file."""
    router = APIRouter(tags=["audio"], prefix="/v1", responses=ANY | answers(403, 404))
    streams = Streams()

    @router.post("/zip", response_class=Response, responses=ZIP)
    async def archive(request: Request, selection: Selection) -> Response:
        """Return the sounds of items and their sidecars, as they are now, in one ZIP file."""
        request.state.caller.require(Right.AUDIO)
        taken = await run_in_threadpool(partial(_taken, seen.by(request), selection.ids, store))
        if store is None or not taken:
            raise Refusal(404, "not-found", "none of these items is in a bucket of this service")
        size = sum(each.size for each in taken)
        if size > MOST_BYTES:
            detail = f"these sounds have {size} bytes: at most {MOST_BYTES} in one file"
            raise Refusal(413, "too-large", detail)
        headers = {"Content-Disposition": f'attachment; filename="{NAME}"'}
        return streams.answer(zipped(store, taken), headers=headers, media_type="application/zip")

    @router.post("/sidecars", response_class=Response, responses=ZIP)
    async def sidecars(request: Request, chosen: Chosen) -> Response:
        """Return sidecars that give items these labels and lose nothing, in one ZIP file."""
        file = await run_in_threadpool(partial(_sidecars, seen.by(request), chosen))
        headers = {"Content-Disposition": f'attachment; filename="{SIDECARS}"'}
        return Response(file, headers=headers, media_type="application/zip")

    return router


def _sidecars(searcher: Searcher, chosen: Chosen) -> bytes:
    """Return the file; ``NotFound`` if it would be empty."""
    labels = {each.id: each.labels for each in chosen.items}
    content, written = BytesIO(), set[str]()
    with ZipFile(content, "w", ZIP_DEFLATED) as file:
        for point in searcher.items(labels):
            name = _name(sidecar_keys(point.payload["key"])[0], written)
            file.writestr(name, _sidecar(point.payload, labels[point.id]))
            written.add(name)
    if not written:
        raise Refusal(404, "not-found", "there is none of these items")
    return content.getvalue()


def _sidecar(payload: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Return a sidecar with these labels and with all that the item's own says besides."""
    said = {name: payload[name] for name in WORDS if payload[name]}
    sidecar = {**payload.get("extra", {}), **said, "labels": list(labels)}
    return json.dumps(sidecar, ensure_ascii=False, indent=2) + "\n"


def _taken(searcher: Searcher, ids: Sequence[str], store: Store | None) -> list[Taken]:
    """Return what there is of these items in the bucket; each once."""
    return [
        Taken(payload["key"], payload["size"], bool(payload["sidecar_etag"]))
        for payload in (point.payload for point in searcher.items(ids))
        if store is not None and payload["bucket"] == store.place(payload["key"])[0]
    ]


def zipped(store: Store, taken: Iterable[Taken]) -> Iterator[bytes]:
    """Yield a ZIP file of these sounds and their sidecars, stored under their keys.

    What cannot be read now is named within the file: the rest is better than nothing.
    """
    sink, written, left_out = _Sink(), dict[str, str](), list[str]()
    with ZipFile(sink, "w") as file:
        for each in taken:
            try:
                for info in _objects(store, each):
                    if info.key not in written:  # two sounds may share a sidecar
                        written[info.key] = _name(info.key, written.values())
                        yield from _entry(file, sink, store, info, written[info.key])
            except (ObjectChanged, Rejected, Unavailable, OSError) as error:
                log.warning("a ZIP file is sent without %s: %s", each.key, error)
                left_out.append(each.key)
        if left_out:
            file.writestr(LEFT_OUT, "".join(f"{key}: {WHY}\n" for key in left_out))
    yield sink.taken()


def _objects(store: Store, taken: Taken) -> Iterator[ObjectInfo]:
    """Yield the sound, and the sidecar if it has one, as they are now."""
    sound = store.head(taken.key) if is_audio(taken.key) else None
    if sound is None:
        raise ObjectChanged(f"{taken.key} was deleted")
    yield sound
    if taken.has_sidecar:
        heads = map(store.head, sidecar_keys(taken.key))
        sidecar = next(filter(None, heads), None)
        if sidecar and sidecar.size <= MAX_SIDECAR_BYTES:
            yield sidecar


def _name(key: str, others: Collection[str]) -> str:
    """Return a path for a key that leads nowhere else when it is unpacked, and is no other's."""
    parts = [part for part in key.replace("\\", "/").split("/") if part.strip(". ")]
    name = "/".join(parts)
    return name if name not in others else f"{len(others)}/{name}"


def _entry(
    file: ZipFile, sink: "_Sink", store: Store, info: ObjectInfo, name: str
) -> Iterator[bytes]:
    """Write an object into the file as it is: sounds do not become smaller."""
    entry = ZipInfo(name, time.gmtime(max(info.modified_ms / 1000, EARLIEST_S))[:6])
    entry.file_size = info.size  # says whether the entry needs the format for large ones
    with store.open(info) as path, path.open("rb") as source, file.open(entry, "w") as target:
        while chunk := source.read(CHUNK_BYTES):
            target.write(chunk)
            yield sink.taken()


class _Sink:
    """What a ZIP file is written to: keeps what was written until it is taken."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, content: bytes) -> int:
        self._written += content
        return len(content)

    def flush(self) -> None:
        """Do nothing: whoever takes it has it."""

    def close(self) -> None:
        """Do nothing either."""

    def taken(self) -> bytes:
        """Return what was written since, and forget it."""
        content = bytes(self._written)
        self._written.clear()
        return content
