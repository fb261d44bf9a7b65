"""The routes of uploads: who may put what into the bucket, how much, and what is answered.

GET /v1/uploads                    whether this caller may
PUT /v1/audio/field/rain.json      a sidecar, best before its sound
PUT /v1/audio/field/rain.wav       a sound; over another one only with If-Match: its ETag, or *
"""

import logging
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, Field

from audiofuse.core.errors import ObjectChanged, Rejected
from audiofuse.core.items import MAX_SIDECAR_BYTES, Metadata, ObjectInfo, is_sidecar
from audiofuse.core.settings import Settings
from audiofuse.core.storage.refusals import Refused
from audiofuse.core.storage.store import Store
from audiofuse.workers.service.admission.guard import AUDIO_PATH
from audiofuse.workers.service.admission.keys import Caller, Right
from audiofuse.workers.service.admission.problems import ANY, Refusal, answers
from audiofuse.workers.service.admission.questions import Lane, Uploads
from audiofuse.workers.service.uploads.keys import flaw
from audiofuse.workers.service.uploads.places import MOST_BYTES, NoPlace, Place, open_place

log = logging.getLogger(__name__)

UPLOAD_S = 3600.0  # in which an object must have arrived
# Uploads that are received or written at once. Higher: more people at once, and more disk.
AT_ONCE = 8
WRITTEN_AT_ONCE = 4
ANYTHING = "*"
BODY = {
    "requestBody": {
        "required": True,
        "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class UploadsTaken(BaseModel):
    """Whether the caller may upload here, and how large a sound may be."""

    open: bool
    most_bytes: int


class Written(BaseModel):
    """What lies in the bucket now; it is found once a worker has listened to it."""

    key: str = Field(examples=["field/rain.wav"])
    etag: str = Field(description="To send as If-Match, with quotes, with what replaces it.")
    size: int


class Receiver:
    """Takes objects into one bucket."""

    def __init__(self, store: Store, place: Place, most_bytes: int) -> None:
        """Write to ``place``, which ``store`` reads, objects of at most ``most_bytes``."""
        self._store = store
        self._place = place
        self.most_bytes = most_bytes
        self._bodies = Uploads(most_bytes, UPLOAD_S)
        self._lane = Lane(WRITTEN_AT_ONCE, AT_ONCE)
        self._open = 0  # changed on the event loop only

    async def take(self, request: Request, key: str, if_match: str) -> tuple[Written, bool]:
        """Return what was written, and whether it is new."""
        if self._open >= AT_ONCE:
            detail = f"{AT_ONCE} uploads are under way: try again when one has ended"
            raise Refusal(503, "busy", detail, Retry_After="5")
        self._open += 1
        try:
            async with self._bodies.received(request) as path:
                return await self._lane.run(lambda: self._write(path, key, if_match))
        finally:
            self._open -= 1

    def _write(self, path: Path, key: str, if_match: str) -> tuple[Written, bool]:
        _check_content(path, key)
        known = self._store.head(key)
        etag = _expected(known, if_match)
        try:
            self._place.put(path, key, etag)
        except ObjectChanged as error:
            raise Refusal(412, "changed", f"{key} was written meanwhile: look at it") from error
        except NoPlace as error:
            raise Refusal(422, "bad-key", str(error)) from error
        except Refused as error:
            log.warning("the storage takes no upload: %s", error)
            detail = "the storage does not let this service write; its log says why"
            raise Refusal(503, "not-writable", detail) from error
        now = self._store.head(key)
        if now is None:
            raise Refusal(412, "changed", f"{key} was deleted meanwhile")
        return Written(key=key, etag=now.etag, size=now.size), known is None


def _check_content(path: Path, key: str) -> None:
    size = path.stat().st_size
    if not size:
        raise Refusal(422, "empty", "there are no bytes in it")
    if not is_sidecar(key):
        return
    if size > MAX_SIDECAR_BYTES:
        raise Refusal(413, "too-large", f"a sidecar has at most {MAX_SIDECAR_BYTES} bytes")
    try:
        Metadata.from_json(path.read_bytes())
    except Rejected as error:
        raise Refusal(422, "bad-sidecar", f"it is no sidecar: {error.detail}") from error


def _expected(known: ObjectInfo | None, if_match: str) -> str | None:
    """Return the etag of what is replaced, ``None`` for nothing; ``Refusal`` if it differs."""
    if not if_match:
        if known:
            detail = "there is such an object: to replace it, send If-Match with its ETag, or *"
            raise Refusal(409, "exists", detail)
        return None
    if known is None or if_match not in {ANYTHING, known.etag, f'"{known.etag}"'}:
        raise Refusal(412, "changed", "there is no such object with that ETag: look at it")
    return known.etag


def open_receiver(settings: Settings, store: Store | None) -> Receiver | None:
    """Return what takes uploads into the bucket, if its owner wants that."""
    if store is None or not settings.uploads:
        return None
    most_bytes = min(settings.max_object_bytes, MOST_BYTES)
    return Receiver(store, open_place(settings, store), most_bytes)


def upload_routes(receiver: Receiver | None, *, has_keys: bool) -> APIRouter:
    """Return the routes; without a receiver they refuse, and say what switches uploads on."""
    router = APIRouter(tags=["uploads"], responses=ANY)

    def is_allowed(request: Request) -> bool:
        caller: Caller = request.state.caller
        return Right.UPLOAD in caller.rights and (has_keys or _is_named_by_address(request))

    @router.get("/v1/uploads")
    async def uploads_taken(request: Request) -> UploadsTaken:
        """Tell whether uploads are taken here, of this caller, and how large a sound may be."""
        if receiver is None or not is_allowed(request):
            return UploadsTaken(open=False, most_bytes=0)
        return UploadsTaken(open=True, most_bytes=receiver.most_bytes)

    @router.put(
        AUDIO_PATH + "{key:path}", openapi_extra=BODY,
        responses=answers(403, 404, 408, 409, 412)
        | {201: {"model": Written, "description": "It is new"}},
    )  # fmt: skip
    async def upload(
        request: Request,
        response: Response,
        key: str,
        if_match: Annotated[str, Header(max_length=200)] = "",
    ) -> Written:
        """Put a sound or a sidecar into the bucket, over another one only with `If-Match`."""
        if receiver is None:
            detail = "this service takes no uploads: its owner may set AUDIOFUSE_UPLOADS=true"
            raise Refusal(404, "uploads-off", detail)
        if not is_allowed(request):
            raise Refusal(403, "not-allowed", f"this key lacks the scope {Right.UPLOAD}")
        if problem := flaw(key):
            raise Refusal(422, "bad-key", problem)
        if not request.state.caller.reaches(key):
            raise Refusal(403, "not-allowed", "this API key may not write there")
        written, is_new = await receiver.take(request, key, if_match)
        response.status_code = 201 if is_new else 200
        return written

    return router


def _is_named_by_address(request: Request) -> bool:
    """Whether we are asked by an address, or as this machine.

    Where no key is needed, a page of others could have its own name lead here, and upload as if it
    were ours.
    """
    host = request.url.hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
