"""One embedded Qdrant for several processes: its owner answers in Qdrant's own REST dialect.

The embedded engine admits one process, so the local deployment gives it to one, and every other
process uses it as it would a server: through ``qdrant_client`` and a URL. Only the calls that
``core.index.index`` makes are served, and queries of programs without audiofuse. Points are read
and written with packed vectors where the other side says that it knows them, see ``rest``.
"""

import secrets
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import pydantic_core
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, TypeAdapter, ValidationError
from qdrant_client import models

from audiofuse.core.index.engine import (
    CollectionExistsError,
    Engine,
    NoSuchCollectionError,
    Selected,
)
from audiofuse.core.index.rest import PACKED, VECTORS, Record, packed

STATUSES: dict[type[Exception], int] = {NoSuchCollectionError: 404, CollectionExistsError: 409}
NO_SNAPSHOTS = (
    "the embedded Qdrant takes no snapshots of {}: stop `audiofuse up` and copy AUDIOFUSE_HOME, or "
    "have it made anew by `audiofuse backfill`"
)


def create_app(engine: Engine, api_key: str) -> FastAPI:
    """Serve an engine to whoever sends ``api_key``."""

    async def authorised(request: Request) -> None:  # ``async``: else in a thread of its own
        if not secrets.compare_digest(request.headers.get("api-key", ""), api_key):
            raise HTTPException(401, "the api-key header is missing or wrong")

    app = FastAPI(title="audiofuse embedded Qdrant", openapi_url=None)
    app.add_api_route("/readyz", lambda: {"status": "ok"})
    app.add_exception_handler(ValueError, _refuse)
    for routes in (_aliases, _collections, _points, _queries):
        app.include_router(routes(engine), dependencies=[Depends(authorised)])
    app.include_router(_of_servers(), dependencies=[Depends(authorised)])
    return app


def _aliases(engine: Engine) -> APIRouter:
    router = APIRouter()

    @router.get("/aliases")
    def aliases() -> Response:
        return _result(engine.get_aliases())

    @router.post("/collections/aliases")
    def change_aliases(body: models.ChangeAliasesOperation) -> Response:
        return _result(engine.update_collection_aliases(body.actions))

    return router


def _collections(engine: Engine) -> APIRouter:
    router = APIRouter()

    @router.get("/collections")
    def collections() -> Response:
        return _result(engine.get_collections())

    @router.get("/collections/{name}")
    def collection(name: str) -> Response:
        return _result(engine.get_collection(name))

    @router.get("/collections/{name}/exists")
    def exists(name: str) -> Response:
        return _result({"exists": engine.collection_exists(name)})

    @router.put("/collections/{name}")
    def create(name: str, body: models.CreateCollection) -> Response:
        made = engine.create_collection(name, vectors_config=body.vectors, metadata=body.metadata)
        return _result(made)

    @router.patch("/collections/{name}")
    def change(name: str, body: models.UpdateCollection) -> Response:
        return _result(engine.update_collection(name, body.metadata))

    @router.delete("/collections/{name}")
    def drop(name: str) -> Response:
        return _result(engine.delete_collection(name))

    @router.post("/collections/{name}/facet")
    def facet(name: str, body: models.FacetRequest) -> Response:
        return _result(engine.facet(name, body))

    @router.put("/collections/{name}/index")
    def create_index(name: str, body: models.CreateFieldIndex) -> Response:
        return _result(engine.create_payload_index(name, body.field_name, body.field_schema))

    return router


def _of_servers() -> APIRouter:
    """Answer what only a server can do."""
    router = APIRouter()

    @router.post("/collections/{name}/snapshots")
    @router.post("/collections/{name}/snapshots/upload")
    def snapshots(name: str) -> None:
        raise HTTPException(501, NO_SNAPSHOTS.format(name))

    @router.get("/cluster")
    def cluster() -> Response:
        return _result({"status": "disabled"})

    return router


class PackedPoints(BaseModel):
    """Points that are sent with packed vectors."""

    points: list[Record]


def _body(kind: Any, packed: Any = None) -> Callable[[Request], Awaitable[Any]]:
    """Return what reads a request's body at once: FastAPI would parse it first, then check it.

    ``packed`` is what it is with packed vectors, if it can be.
    """
    plain, other = TypeAdapter(kind), TypeAdapter(packed or kind)

    async def read(request: Request) -> Any:
        known = other if VECTORS in request.headers else plain
        try:
            return known.validate_json(await request.body())
        except ValidationError as error:
            raise RequestValidationError(error.errors(include_url=False)) from error

    return read


PointsBody = Annotated[
    models.PointsList | PackedPoints, Depends(_body(models.PointsList, PackedPoints))
]
RequestBody = Annotated[models.PointRequest, Depends(_body(models.PointRequest))]
PayloadBody = Annotated[models.SetPayload, Depends(_body(models.SetPayload))]
SelectedBody = Annotated[Selected, Depends(_body(Selected))]


def _points(engine: Engine) -> APIRouter:
    router = APIRouter(prefix="/collections/{name}/points")

    @router.put("")
    def upsert(name: str, body: PointsBody) -> Response:
        return _result(engine.upsert(name, body.points))

    @router.post("")
    def retrieve(name: str, body: RequestBody, request: Request) -> Response:
        records = engine.retrieve(
            name, body.ids, with_payload=_asked(body.with_payload, default=True),
            with_vectors=_asked(body.with_vector),
        )  # fmt: skip
        return _result(map(_packed, records) if VECTORS in request.headers else records)

    @router.post("/delete")
    def delete(name: str, body: SelectedBody) -> Response:
        return _result(engine.delete(name, body))

    @router.post("/payload")
    def set_payload(name: str, body: PayloadBody) -> Response:
        if body.filter is None:
            raise HTTPException(400, "the embedded index sets payloads of points by a filter")
        return _result(engine.set_payload(name, body.payload, body.filter))

    @router.post("/count")
    def count(name: str, body: models.CountRequest) -> Response:
        return _result(engine.count(name, body.filter))

    @router.post("/scroll")
    def scroll(name: str, body: models.ScrollRequest) -> Response:
        records, offset = engine.scroll(
            name, body.filter, limit=body.limit or 10, offset=body.offset,
            with_payload=_asked(body.with_payload, default=True),
            with_vectors=_asked(body.with_vector), order_by=body.order_by,
        )  # fmt: skip
        return _result({"points": records, "next_page_offset": offset})

    return router


def _queries(engine: Engine) -> APIRouter:
    router = APIRouter(prefix="/collections/{name}/points")

    @router.post("/query/batch")
    def query_batch(name: str, body: models.QueryRequestBatch, request: Request) -> Response:
        found = engine.query_batch_points(name, body.searches)
        if VECTORS in request.headers:
            found = [{"points": list(map(_packed, each["points"]))} for each in found]
        return _result(found)

    @router.post("/query/groups")
    def query_groups(name: str, body: models.QueryGroupsRequest, request: Request) -> Response:
        found = engine.query_points_groups(name, body)
        if VECTORS in request.headers:
            for group in found["groups"]:
                group["hits"] = list(map(_packed, group["hits"]))
        return _result(found)

    @router.post("/query")  # what programs without audiofuse ask
    def query(name: str, body: models.QueryRequest) -> Response:
        return _result(engine.query_batch_points(name, [body])[0])

    return router


def _asked(selector: Any, *, default: bool = False) -> Any:
    return default if selector is None else selector


def _packed(record: Any) -> dict[str, Any]:
    """Return a point, as the engine has it or as Qdrant's own one in memory does, packed."""
    point = record if isinstance(record, dict) else record.model_dump()
    vectors = point["vector"] or {}
    return {**point, "vector": {name: packed(vector) for name, vector in vectors.items()}}


def _result(value: object) -> Response:
    """Answer as a server does; what FastAPI makes of an answer itself takes ten times as long."""
    answer = {"result": value, "status": "ok", "time": 0.0}
    content = pydantic_core.to_json(answer, bytes_mode="base64")
    return Response(content, media_type="application/json", headers=PACKED)


def _refuse(_: Request, error: Exception) -> JSONResponse:
    """Answer what the engine refuses with the status that a server gives."""
    status = STATUSES.get(type(error), 400)
    return JSONResponse({"status": {"error": str(error)}, "time": 0.0}, status_code=status)
