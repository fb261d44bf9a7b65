"""The routes of a federation: those of a service that several deployments can answer together."""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from audiofuse.core.errors import QueryError
from audiofuse.core.query import CANDIDATES, MAX_LIMIT
from audiofuse.workers.federation import merging
from audiofuse.workers.federation.asking import Federation, Gathered
from audiofuse.workers.federation.members import Asked
from audiofuse.workers.federation.models import (
    FacetsOfAll,
    FoundByAll,
    ItemsOfAll,
    SelectionOfAll,
)
from audiofuse.workers.service import models
from audiofuse.workers.service.admission.keys import Right
from audiofuse.workers.service.admission.problems import ANY, Refusal, answers
from audiofuse.workers.service.admission.questions import Questions, Uploads
from audiofuse.workers.service.audio import root_of
from audiofuse.workers.service.catalogue import (
    MOST_VALUES,
    FacetsAnswer,
    FacetsQuery,
    ItemsAnswer,
    ItemsQuery,
)
from audiofuse.workers.service.routes import SOUND_BODY, LabelsAnswer
from audiofuse.workers.service.uploads.routes import UploadsTaken

MOST_HITS = MAX_LIMIT  # up to the end of a page: each member is asked for as many
METHODS = ["GET", "POST", "PUT"]
OF_ONE = (
    "audio", "duplicates", "encoders", "explain", "export", "feedback", "labels", "map", "rejected",
    "sidecars", "zip",
)  # fmt: skip
NOT_HERE = (
    "this service asks several deployments and has no index or bucket of its own: "
    "ask the deployment that is meant"
)
Told = TypeVar("Told", models.HitAnswer, models.ItemAnswer)
Answer = TypeVar("Answer", bound=BaseModel)


def search_routes(federation: Federation, questions: Questions) -> APIRouter:
    """Return the routes that search."""
    router = APIRouter(tags=["search"], prefix="/v1", responses=ANY)
    uploads = Uploads()

    async def answer(query: models.Query, request: Request) -> Response:
        vector = query.vector.given() if query.vector else None
        query.question(query.q, query.like or "", at_s=query.at_s, vector=vector)  # checked
        reach = _reach(query)
        with federation.place(reach):
            whole = await _with_vector(federation, query)
            whole = whole.model_copy(update={"offset": 0, "limit": reach})
            body = whole.model_dump_json(exclude_defaults=True).encode()
            gathered = await federation.all(Asked("/v1/search", body=body))
            return await questions.answer(partial(_found, gathered, query, request), reach)

    @router.get("/search", response_model=FoundByAll)
    async def search(request: Request, options: Annotated[models.ByWords, Query()]) -> Response:
        """Return the sounds of all members nearest to a sentence, best first."""
        return await answer(_query(options), request)

    @router.post("/search", response_model=FoundByAll, responses=answers(404))
    async def search_by_all(request: Request, options: models.Query) -> Response:
        """Search by a sentence, by an item of any member, or by both; the body has the options."""
        return await answer(options, request)

    @router.post(
        "/search/sound", response_model=FoundByAll, responses=answers(408),
        openapi_extra=SOUND_BODY,
    )  # fmt: skip
    async def search_by_sound(
        request: Request, options: Annotated[models.BySound, Query()]
    ) -> Response:
        """Return what sounds like the file in the body, of any format that is indexed, too."""
        reach = _reach(options)
        async with uploads.received(request) as sound:
            options.question(options.q, sound=sound)  # checked
            params = _params(options, {"offset": 0, "limit": reach})
            with federation.place(reach):
                gathered = await federation.all(Asked("/v1/search/sound", params, file=sound))
        return await questions.answer(partial(_found, gathered, options, request), reach)

    @router.get("/similar/{id}", response_model=FoundByAll, responses=answers(404))
    async def similar(
        request: Request,
        id: models.Id,  # noqa: A002 - its name in the URL
        options: Annotated[models.Like, Query()],
    ) -> Response:
        """Return what is like an item, or like a moment of it, without the item itself."""
        return await answer(_query(options, like=id), request)

    return router


def item_routes(federation: Federation, questions: Questions) -> APIRouter:
    """Return the routes that tell of items: of all members' together, and of one."""
    router = APIRouter(tags=["items"], prefix="/v1", responses=ANY)

    @router.get("/items", response_model=ItemsOfAll)
    async def items(request: Request, asked: Annotated[ItemsQuery, Query()]) -> Response:
        """Return how many items there are, and one page of them."""
        with federation.place(asked.limit):
            gathered = await federation.all(Asked("/v1/items", _params(asked)))
            return await questions.answer(partial(_items, gathered, asked, request), asked.limit)

    @router.post("/items", response_model=SelectionOfAll)
    async def several(request: Request, selection: models.Selection) -> Response:
        """Return several items by their ids; what else their sidecars say only one by one."""
        ids = selection.ids
        with federation.place(len(ids)):
            body = selection.model_dump_json().encode()
            gathered = await federation.all(Asked("/v1/items", body=body))
            return await questions.answer(partial(_selected, gathered, ids, request), len(ids))

    @router.get("/facets", response_model=FacetsOfAll)
    async def facets(asked: Annotated[FacetsQuery, Query()]) -> Response:
        """Return what items have in common, and how many have it: the commonest first."""
        with federation.place():
            params = _params(asked, {"limit": MOST_VALUES})
            gathered = await federation.all(Asked("/v1/facets", params))
            return await questions.answer(partial(_facets, gathered, asked))

    @router.get("/items/{id}", response_model=models.ItemAnswer, responses=answers(404))
    async def item(request: Request, id: models.Id) -> Response:  # noqa: A002 - its name in the URL
        """Return one item, with all that its sidecar says."""
        name, told = await federation.first(Asked(f"/v1/items/{id}"), models.ItemAnswer)
        (shown,) = _shown(name, [told], request)
        return _json(shown)

    @router.get("/items/{id}/vector", response_model=models.EmbedAnswer, responses=answers(404))
    async def vector(id: models.Id, at_s: Annotated[models.Second, Query()] = None) -> Response:  # noqa: A002 - its name in the URL
        """Return an item's vector, or that of its moment, to search another deployment with."""
        return _json(await _vector(federation, id, at_s))

    @router.get(
        "/items/{id}/timeline", response_model=models.TimelineAnswer, responses=answers(404)
    )
    async def timeline(id: models.Id, options: Annotated[models.Heard, Query()]) -> Response:  # noqa: A002 - its name in the URL
        """Return how near each window of a recording is to a sentence, in the order of time."""
        asked = Asked(f"/v1/items/{id}/timeline", _params(options))
        return _json((await federation.first(asked, models.TimelineAnswer))[1])

    @router.get("/items/{id}/labels", response_model=LabelsAnswer, responses=answers(404))
    async def labels(id: models.Id) -> Response:  # noqa: A002 - its name in the URL
        """Return what an item may be called by its sound."""
        return _json((await federation.first(Asked(f"/v1/items/{id}/labels"), LabelsAnswer))[1])

    @router.get("/embed", response_model=models.EmbedAnswer, responses=answers(404))
    async def embed(q: Annotated[models.Words, Query(examples=["a dog barking"])]) -> Response:
        """Return a text's vector, as the member that answers first has it."""
        asked = Asked("/v1/embed", [("q", q)])
        return _json((await federation.first(asked, models.EmbedAnswer))[1])

    return router


def other_routes() -> APIRouter:
    """Return what is not done for several deployments at once, and says so."""
    router = APIRouter(prefix="/v1", responses=ANY)

    @router.get("/feedback", response_model=models.FeedbackTaken, tags=["feedback"])
    async def feedback_taken() -> models.FeedbackTaken:
        """Tell that no feedback is kept here."""
        return models.FeedbackTaken(open=False)

    @router.get("/uploads", tags=["uploads"])
    async def uploads_taken() -> UploadsTaken:
        """Tell that nothing is taken here."""
        return UploadsTaken(open=False, most_bytes=0)

    @router.api_route("/{path:path}", methods=METHODS, include_in_schema=False)
    async def not_here(path: str) -> Response:
        if path.partition("/")[0] in OF_ONE:
            raise Refusal(501, "not-here", NOT_HERE)
        raise Refusal(404, "not-found", "there is no such route")

    return router


def _reach(options: models.Options) -> int:
    """Return how many hits of each member a page takes; ``QueryError`` if they are too many."""
    reach = options.offset + options.limit
    if reach > MOST_HITS:
        raise QueryError(f"offset and limit reach beyond {MOST_HITS} hits: narrow the question")
    return CANDIDATES if options.unique else reach  # a hit's copies may be far behind it


def _query(options: models.Options, like: str | None = None) -> models.Query:
    """Return the same question as ``POST /v1/search`` takes it."""
    return models.Query.model_validate({**dict(options), "like": like})


def _params(options: BaseModel, changes: dict[str, int] | None = None) -> list[tuple[str, str]]:
    said = options.model_dump(mode="json", exclude_defaults=True) | (changes or {})
    return [
        (name, str(each).lower() if isinstance(each, bool) else str(each))
        for name, value in said.items()
        for each in (value if isinstance(value, list) else [value])
    ]


async def _vector(federation: Federation, id_: str, at_s: float | None) -> models.EmbedAnswer:
    params = [] if at_s is None else [("at_s", str(at_s))]
    asked = Asked(f"/v1/items/{id_}/vector", params)
    return (await federation.first(asked, models.EmbedAnswer))[1]


async def _with_vector(federation: Federation, query: models.Query) -> models.Query:
    """Return a question that every member can answer, whoever has the item that it names."""
    if query.like is None or query.vector:
        return query
    told = await _vector(federation, query.like, query.at_s)
    vector = models.Likeness(encoder=told.encoder, vector=told.vector)
    return query.model_copy(update={"vector": vector, "at_s": None})


def _found(gathered: Gathered, asked: models.Options, request: Request) -> FoundByAll:
    told, missing = gathered.told(models.FoundAnswer)
    shown = {
        name: each.model_copy(update={"hits": _shown(name, each.hits, request)})
        for name, each in told.items()
    }
    return merging.found(shown, missing, asked)


def _items(gathered: Gathered, asked: ItemsQuery, request: Request) -> ItemsOfAll:
    told, missing = gathered.told(ItemsAnswer, partial(merging.check_page, sort=asked.sort))
    shown = {
        name: each.model_copy(update={"found": _shown(name, each.found, request)})
        for name, each in told.items()
    }
    return merging.items(shown, missing, asked)


def _selected(gathered: Gathered, ids: list[str], request: Request) -> SelectionOfAll:
    told, missing = gathered.told(models.SelectionAnswer)
    shown = {
        name: each.model_copy(update={"items": _shown(name, each.items, request)})
        for name, each in told.items()
    }
    return merging.selection(shown, missing, ids)


def _facets(gathered: Gathered, asked: FacetsQuery) -> FacetsOfAll:
    return merging.facets(*gathered.told(FacetsAnswer), asked)


def _shown(member: str, told: Iterable[Told], request: Request) -> list[Told]:
    """Return what a member told with links that lead through us, for those who may hear."""
    may_hear, root = Right.AUDIO in request.state.caller.rights, root_of(request)
    return [
        each.model_copy(
            update={
                "audio_url": merging.link(member, each.audio_url, root) if may_hear else None,
                "location": each.location if may_hear else None,
            }
        )
        for each in told
    ]


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
