"""The routes of the query service: search, similar, items, embed.

GET  /v1/search?q=a dog barking&limit=5&keyword=park     by words
POST /v1/search        {"q": ..., "like": ID, ...}       by words, by an item, or both
POST /v1/search/sound?limit=5                            by the sound in the body
GET  /v1/similar/ID                                      more like an item
GET  /v1/items, /v1/items/ID                             how many there are; one of them
GET  /v1/embed?q=a dog barking                           a text's vector
"""

import asyncio
import tempfile
from pathlib import Path
from typing import IO, Annotated

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from audiofuse.core.query import Question
from audiofuse.core.search.search import Searcher
from audiofuse.workers.service import models
from audiofuse.workers.service.audio import Links, root_of
from audiofuse.workers.service.guard import Right
from audiofuse.workers.service.problems import ANY, Refusal, answers

SOUNDS_AT_ONCE = 4  # of which each waits on the disk until it is heard
UPLOAD_S = 120
SOUND_BODY = {
    "requestBody": {
        "required": True,
        "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}
Words = Annotated[models.ByWords, Query()]
Options = Annotated[models.Options, Query()]
SoundOptions = Annotated[models.BySound, Query()]


class Answers:
    """Asks the searcher, and tells what it found with links."""

    def __init__(self, searcher: Searcher, links: Links) -> None:
        """Answer from ``searcher``, with ``links`` to the sounds."""
        self._searcher = searcher
        self._links = links

    def search(self, question: Question, request: Request) -> models.FoundAnswer:
        """Answer a question."""
        found = self._searcher.search(question)
        hits = [
            models.HitAnswer.of(hit, self.link(hit.payload["bucket"], hit.key, request))
            for hit in found.hits
        ]
        return models.FoundAnswer(encoder=found.encoder, hits=hits)

    def link(self, bucket: str, key: str, request: Request) -> str | None:
        """Return where a sound is heard, for those who may."""
        if Right.AUDIO not in request.state.caller.rights:
            return None
        return self._links.link(bucket, key, root_of(request))


def search_routes(searcher: Searcher, links: Links) -> APIRouter:
    """Return the routes that search."""
    router = APIRouter(tags=["search"], prefix="/v1", responses=ANY)
    answered = Answers(searcher, links)
    room = asyncio.Semaphore(SOUNDS_AT_ONCE)

    @router.get("/search")
    def search(request: Request, options: Words) -> models.FoundAnswer:
        """Return the sounds nearest to a sentence, best first, with the parts of their score."""
        return answered.search(options.question(options.q), request)

    @router.post("/search", responses=answers(404))
    def search_by_all(request: Request, options: models.Query) -> models.FoundAnswer:
        """Search by a sentence, by an item, or by both; the body has the options."""
        return answered.search(options.question(options.q, options.like or ""), request)

    @router.post("/search/sound", responses=answers(408), openapi_extra=SOUND_BODY)
    async def search_by_sound(request: Request, options: SoundOptions) -> models.FoundAnswer:
        """Return what sounds like the file in the body, of any format that is indexed, too."""
        async with room:
            with tempfile.NamedTemporaryFile(prefix="audiofuse-asked-") as file:
                await _receive(request, file)
                question = options.question(options.q, sound=Path(file.name))
                return await run_in_threadpool(answered.search, question, request)

    @router.get("/similar/{id}", responses=answers(404))
    def similar(request: Request, id: models.Id, options: Options) -> models.FoundAnswer:  # noqa: A002 - its name in the URL
        """Return what is like an item, without the item itself."""
        return answered.search(options.question(like=id), request)

    return router


def item_routes(searcher: Searcher, links: Links) -> APIRouter:
    """Return the routes that tell of items, and of vectors."""
    router = APIRouter(tags=["items"], prefix="/v1", responses=ANY)
    answered = Answers(searcher, links)

    @router.get("/items")
    def items() -> models.ItemsAnswer:
        """Return how many items can be found."""
        version, count = searcher.count()
        return models.ItemsAnswer(items=count, encoder=version)

    @router.get("/items/{id}", responses=answers(404))
    def item(request: Request, id: models.Id) -> models.ItemAnswer:  # noqa: A002 - its name in the URL
        """Return one item."""
        point = searcher.item(id)
        key = point.payload["key"]
        url = answered.link(point.payload["bucket"], key, request)
        payload = models.shown(point.payload)
        return models.ItemAnswer(id=point.id, key=key, audio_url=url, payload=payload)

    @router.get("/embed", responses=answers(404))
    def embed(q: Annotated[models.Words, Query(examples=["a dog barking"])]) -> models.EmbedAnswer:
        """Return a text's vector, to ask Qdrant with."""
        version, vector = searcher.embed(q)
        return models.EmbedAnswer(encoder=version, vector=vector)

    return router


async def _receive(request: Request, file: IO[bytes]) -> None:
    try:
        async with asyncio.timeout(UPLOAD_S):
            async for chunk in request.stream():
                file.write(chunk)
    except TimeoutError:
        raise Refusal(408, "slow", f"the sound did not arrive within {UPLOAD_S} s") from None
    except ClientDisconnect:
        raise Refusal(400, "cut-off", "the sound did not arrive whole") from None
    file.flush()
