"""The routes that tell what there is, without a question, and what they answer.

GET /v1/items?label=Dog&sort=newest&limit=50    items page by page; how many there are
GET /v1/facets?prefix=field/                    labels, keywords, lengths, years, folders
GET /v1/duplicates, /v1/duplicates?alike=0.98   the same bytes; what sounds alike
GET /v1/export?label=Dog                        all items, a JSON object a line
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.types import Send

from audiofuse.core.index.index import Point
from audiofuse.core.query import MAX_LIMIT, Sort
from audiofuse.core.search.catalogue import Catalogue, Facets, Groups, Listed
from audiofuse.workers.service.admission.keys import Right
from audiofuse.workers.service.admission.problems import ANY, Refusal, answers
from audiofuse.workers.service.admission.questions import Questions
from audiofuse.workers.service.admission.seen import Seen
from audiofuse.workers.service.audio import Links
from audiofuse.workers.service.models import Id, ItemAnswer, Payload, Where, shown
from audiofuse.workers.service.routes import Answers

log = logging.getLogger(__name__)

MOST_VALUES = 200  # of one facet
LARGE = MAX_LIMIT  # what asks the index many times goes where large questions go
# Exports that run at once. Higher: more programs are served; lower: questions wait less for them.
EXPORTS_AT_ONCE = 2
EXPORT_S = 3600  # after so long an export is broken off: whoever reads so slowly goes on behind it
NDJSON = "application/x-ndjson"

After = Annotated[
    str,
    Field(max_length=100, description="What the page before gave as `next`.", examples=[""]),
]


class ItemsQuery(Where):
    """Which items, in which order, and how many."""

    sort: Sort = Field(default=Sort.ID, description="Their order; random is anew each time.")
    limit: int = Field(default=20, ge=1, le=MAX_LIMIT, description="Most items to return.")
    after: After = ""
    extra: bool = Field(default=False, description="Tell what else their sidecars say, too.")


class FacetsQuery(Where):
    """Which items, and what of them is counted."""

    facet: list[Literal["labels", "keywords", "has_text", "lengths", "years", "folders"]] = Field(
        default=[], max_length=len(Catalogue.FACETS), description="What is counted; unset: all."
    )
    limit: int = Field(default=20, ge=1, le=MOST_VALUES, description="Most values of each.")


class DuplicatesQuery(Where):
    """Which items, and how alike they must be."""

    alike: float | None = Field(
        default=None,
        ge=0.5,
        le=1,
        description="Cosine of audio vectors from which on items count as alike. Unset: only "
        "items of the same bytes.",
    )
    limit: int = Field(
        default=20, ge=1, le=100, description="Most groups of the same bytes to return."
    )
    after: After = ""


class ExportQuery(Where):
    """Which items."""

    after: Id | None = Field(
        default=None, description="Id of the last item of an export that was broken off."
    )


class ItemsAnswer(BaseModel):
    """How many items pass the filter, one page of them, and the version that they were made with.

    ``next`` is empty after the last page.
    """

    items: int
    encoder: str | None
    found: list[ItemAnswer]
    next: str


class ValueAnswer(BaseModel):
    """A value and how many items have it; it is a filter of the same name."""

    value: str
    items: int


class LengthAnswer(BaseModel):
    """Lengths in seconds, both included, and how many items have one of them."""

    min_duration: float
    max_duration: float | None = Field(description="Null: as long as you like.")
    items: int


class YearAnswer(BaseModel):
    """A year (UTC) of modification."""

    year: int
    items: int


class FacetsAnswer(BaseModel):
    """What the items that pass the filter have in common; null what was not asked for.

    ``folders`` are those right below the one of the filter's prefix. ``folders_complete``: whether
    none can be missing that has sounds.
    """

    items: int
    encoder: str | None
    labels: list[ValueAnswer] | None
    keywords: list[ValueAnswer] | None
    has_text: list[ValueAnswer] | None
    lengths: list[LengthAnswer] | None
    years: list[YearAnswer] | None
    folders: list[ValueAnswer] | None
    folders_complete: bool


class AlikeAnswer(ItemAnswer):
    """An item of a group; ``likeness`` is the cosine of its audio vector and the first one's."""

    likeness: float


class GroupAnswer(BaseModel):
    """Items that are alike: how many, and the first of them."""

    count: int
    items: list[AlikeAnswer]


class DuplicatesAnswer(BaseModel):
    """Groups; ``next`` is empty after the last one. Pages may be empty before that."""

    encoder: str | None
    groups: list[GroupAnswer]
    next: str


class _Told:
    """Answers from the catalogue of what a request's caller may see."""

    def __init__(self, seen: Seen, links: Links) -> None:
        self._seen = seen
        self._answers = Answers(seen, links)

    def _catalogue(self, request: Request) -> Catalogue:
        return Catalogue(self._seen.by(request))

    def items(self, asked: ItemsQuery, request: Request) -> ItemsAnswer:
        listed: Listed = self._catalogue(request).page(
            asked.where(), asked.sort, asked.limit, asked.after, extra=asked.extra
        )
        found = [self._answers.told(each, request) for each in listed.points]
        return ItemsAnswer(
            items=listed.count, encoder=listed.encoder, found=found, next=listed.following
        )

    def facets(self, asked: FacetsQuery, request: Request) -> FacetsAnswer:
        wanted = set(asked.facet or Catalogue.FACETS)
        found = self._catalogue(request).facets(asked.where(), wanted, asked.limit)
        answer = _facets(found)
        return answer.model_copy(update=dict.fromkeys(set(Catalogue.FACETS) - wanted))

    def duplicates(self, asked: DuplicatesQuery, request: Request) -> DuplicatesAnswer:
        catalogue = self._catalogue(request)
        found: Groups = (
            catalogue.same(asked.where(), asked.limit, asked.after)
            if asked.alike is None
            else catalogue.alike(asked.where(), asked.alike, asked.after)
        )
        groups = [
            GroupAnswer(
                count=group.count,
                items=[
                    self._alike(point, likeness, request)
                    for point, likeness in zip(group.points, group.likeness, strict=True)
                ],
            )
            for group in found.groups
        ]
        return DuplicatesAnswer(encoder=found.encoder, groups=groups, next=found.following)

    def _alike(self, point: Point, likeness: float, request: Request) -> AlikeAnswer:
        told = self._answers.told(point, request)
        return AlikeAnswer(**dict(told), likeness=round(likeness, 4))

    def lines(self, asked: ExportQuery, request: Request) -> Iterator[bytes]:
        """Yield the lines of an export, many at a time."""
        for points in self._catalogue(request).walk(asked.where(), asked.after or ""):
            yield b"".join(map(_line, points))


def _facets(found: Facets) -> FacetsAnswer:
    values: dict[str, Any] = {name: _values(counts) for name, counts in found.values.items()}
    return FacetsAnswer(
        items=found.count,
        encoder=found.encoder,
        **dict.fromkeys(Catalogue.VALUES) | values,
        lengths=[
            LengthAnswer(min_duration=each.shortest, max_duration=each.longest, items=each.count)
            for each in found.lengths
        ],
        years=[YearAnswer(year=year, items=count) for year, count in found.years.items()],
        folders=_values(found.folders),
        folders_complete=found.folders_complete,
    )


def _values(counts: Any) -> list[ValueAnswer]:
    return [ValueAnswer(value=value, items=count) for value, count in counts.items()]


def _line(point: Point) -> bytes:
    told = Exported(id=point.id, key=point.payload["key"], payload=shown(point.payload))
    return told.model_dump_json().encode() + b"\n"


class Exported(BaseModel):
    """A line of an export."""

    id: str
    key: str
    payload: Payload


class Exports:
    """Exports that run; their threads are none of those that questions wait for."""

    def __init__(self, at_once: int = EXPORTS_AT_ONCE, longest_s: float = EXPORT_S) -> None:
        """Run ``at_once`` of them, each at most ``longest_s``."""
        self._threads = CapacityLimiter(at_once)
        self._at_once = at_once
        self._longest_s = longest_s
        self._running = 0  # changed on the event loop only

    async def answer(self, lines: Iterator[bytes]) -> Response:
        """Return the lines as an answer, once the first of them are there."""
        if self._running >= self._at_once:
            detail = f"{self._at_once} exports are running: ask again when one has ended"
            raise Refusal(503, "busy", detail, Retry_After="60")
        self._running += 1
        try:
            first = await self._next(lines)
        except BaseException:
            self._running -= 1
            raise
        return _Export(self._all(first, lines), self._longest_s, self._ended)

    async def _all(self, some: bytes, lines: Iterator[bytes]) -> AsyncIterator[bytes]:
        while some:
            yield some
            some = await self._next(lines)

    async def _next(self, lines: Iterator[bytes]) -> bytes:
        return await to_thread.run_sync(next, lines, b"", limiter=self._threads)

    def _ended(self) -> None:
        self._running -= 1


class _Export(StreamingResponse):
    """Lines as fast as they are read, but not for ever: then the connection is broken off."""

    def __init__(
        self, lines: AsyncIterator[bytes], longest_s: float, ended: Callable[[], None]
    ) -> None:
        super().__init__(lines, media_type=NDJSON)
        self._longest_s = longest_s
        self._ended = ended

    async def stream_response(self, send: Send) -> None:
        try:
            async with asyncio.timeout(self._longest_s):
                await super().stream_response(send)
        except TimeoutError:  # the answer has no end then: its reader knows that it is not whole
            log.warning("an export was broken off after %s s", self._longest_s)
        finally:
            self._ended()


def catalogue_routes(seen: Seen, links: Links, questions: Questions) -> APIRouter:
    """Return the routes that tell what there is."""
    router = APIRouter(tags=["catalogue"], prefix="/v1", responses=ANY)
    told, exports = _Told(seen, links), Exports()

    @router.get("/items", response_model=ItemsAnswer)
    async def items(request: Request, asked: Annotated[ItemsQuery, Query()]) -> Response:
        """Return how many items there are, and one page of them."""
        return await questions.answer(partial(told.items, asked, request), asked.limit)

    @router.get("/facets", response_model=FacetsAnswer)
    async def facets(request: Request, asked: Annotated[FacetsQuery, Query()]) -> Response:
        """Return what items have in common, and how many have it: the commonest first."""
        return await questions.answer(partial(told.facets, asked, request), LARGE)

    @router.get("/duplicates", response_model=DuplicatesAnswer)
    async def duplicates(request: Request, asked: Annotated[DuplicatesQuery, Query()]) -> Response:
        """Return groups of items with the same bytes; with `alike` of items that sound alike.

        With `alike` each answer is about a stretch of all items, and may have no groups.
        """
        return await questions.answer(partial(told.duplicates, asked, request), LARGE)

    @router.get(
        "/export", response_class=StreamingResponse,
        responses={**answers(403), 200: {"content": {NDJSON: {"schema": {"type": "string"}}}}},
    )  # fmt: skip
    async def export(request: Request, asked: Annotated[ExportQuery, Query()]) -> Response:
        """Return all items, with all that their sidecars say: a JSON object a line, by id.

        An answer that is broken off is not whole: go on with `after`, the id of its last line.
        """
        request.state.caller.require(Right.EXPORT)
        return await exports.answer(told.lines(asked, request))

    return router
