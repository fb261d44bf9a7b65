"""Sounds of members: what they serve themselves is handed on while it arrives, byte for byte."""

from typing import Annotated
from urllib.parse import quote

import httpx
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from audiofuse.workers.federation.asking import Federation, nobody, refusal
from audiofuse.workers.federation.members import Asked, Line, Missing, Refused
from audiofuse.workers.service.admission.guard import AUDIO_PATH
from audiofuse.workers.service.admission.keys import Right
from audiofuse.workers.service.admission.problems import ANY, Refusal, answers
from audiofuse.workers.service.admission.streams import Streams
from audiofuse.workers.service.models import Excerpt, Id, ItemAnswer

AT_ONCE = 64  # sounds that are handed on; each takes two connections
CHUNK_S = 30.0  # to wait for a member's next bytes
CUT_S = 90.0  # to wait for it to cut a sound
HANDED_ON = (
    "content-length", "content-range", "content-encoding", "content-disposition", "accept-ranges",
    "etag", "last-modified",
)  # fmt: skip
SOUNDS = ("audio/", "video/", "application/ogg")  # types that a browser plays, and does not run
UNKNOWN = "application/octet-stream"
DOTS = {".", ".."}
SAID = {403, 404, 416, 422, 503}  # statuses of a member that are ours, too


def sound_routes(federation: Federation) -> APIRouter:
    """Return the routes by which members' sounds are heard."""
    router = APIRouter(tags=["audio"], responses=ANY | answers(403, 404, 416))
    streams = Streams(AT_ONCE)

    @router.get(
        AUDIO_PATH + "{member}/{key:path}", response_class=Response,
        responses={206: {"description": "A part"}},
    )  # fmt: skip
    async def audio(  # noqa: PLR0913, PLR0917 - the link, and which part of it
        member: str, key: str, expires: int, signature: str,
        range: Annotated[str | None, Header()] = None,  # noqa: A002 - its name in the request
        if_range: Annotated[str | None, Header()] = None,
    ) -> Response:  # fmt: skip
        """Return a sound, whole or by ``Range``; links to it come with hits."""
        line = federation.lines.get(member)
        if line is None:
            raise Refusal(404, "not-found", "no member is called so")
        if not DOTS.isdisjoint(key.split("/")):  # whoever reads such a path leads it elsewhere
            raise Refusal(404, "not-found", "no sound has such a link")
        path = AUDIO_PATH + quote(key)
        asked = Asked(path, [("expires", str(expires)), ("signature", signature)])
        wanted = {
            name: value for name, value in (("Range", range), ("If-Range", if_range)) if value
        }
        answer = await _opened(line, asked, wanted, CHUNK_S, with_key=False)  # it is signed
        return _HandedOn(answer, streams)

    @router.get(
        "/v1/items/{id}/excerpt", response_class=Response,
        responses={200: {"content": {"audio/wav": {}}}},
    )  # fmt: skip
    async def excerpt(
        request: Request,
        id: Id,  # noqa: A002 - its name in the URL
        options: Annotated[Excerpt, Query()],
    ) -> Response:
        """Return what is heard between two seconds of an item, as WAV."""
        request.state.caller.require(Right.AUDIO)
        owner, _ = await federation.first(Asked(f"/v1/items/{id}"), ItemAnswer)
        part = [("start_s", str(options.start_s)), ("end_s", str(options.end_s))]
        asked = Asked(f"/v1/items/{id}/excerpt", part)
        answer = await _opened(federation.lines[owner], asked, {}, CUT_S, with_key=True)
        return _HandedOn(answer, streams)

    return router


async def _opened(
    line: Line, asked: Asked, headers: dict[str, str], patience_s: float, *, with_key: bool
) -> httpx.Response:
    try:
        return await line.opened(asked, headers, patience_s, with_key=with_key)
    except Missing as missing:
        if isinstance(missing, Refused) and missing.status in SAID:
            raise refusal(missing) from missing
        raise nobody([missing]) from missing


class _HandedOn(StreamingResponse):
    """A member's answer, which is closed whatever becomes of it."""

    def __init__(self, answer: httpx.Response, streams: Streams) -> None:
        headers = {name: answer.headers[name] for name in HANDED_ON if name in answer.headers}
        said = answer.headers.get("content-type", UNKNOWN)
        kind = said if said.startswith(SOUNDS) else UNKNOWN
        super().__init__(answer.aiter_raw(), answer.status_code, headers, media_type=kind)
        self._answer = answer
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with self._streams.place():
                await super().__call__(scope, receive, send)
        finally:
            await self._answer.aclose()
