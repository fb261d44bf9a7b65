"""The route of the map: items on a plane, for whoever draws it.

GET /v1/map                   as far as it is drawn
GET /v1/map?known=NUMBER      likewise, without its items if it still is the map of that number
"""

from functools import cache, partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from audiofuse.core.query import MAX_LIMIT
from audiofuse.core.search.maps import Map, Maps
from audiofuse.workers.service.admission.problems import ANY
from audiofuse.workers.service.admission.questions import Questions
from audiofuse.workers.service.admission.seen import Seen

LARGE = MAX_LIMIT  # thousands of items go where large questions go
DIGITS = 4  # of a place: a screen has no more points


class PlaceAnswer(BaseModel):
    """An item and its place, each coordinate within -1 and 1."""

    id: str
    key: str = Field(examples=["field/rain.wav"])
    x: float
    y: float
    title: str
    tags: list[str] = Field(description="Its labels; its keywords if it has none.")
    duration_s: float
    size: int = Field(description="In bytes.")


class MapAnswer(BaseModel):
    """The map as far as it is drawn: ask again while it is not ``final``.

    ``places`` are of a sample where there are more than some thousand ``items``; null if the map
    still is the one that is known.
    """

    state: Literal["drawing", "rough", "final"]
    number: int = Field(description="What to ask with as `known`.")
    encoder: str | None
    items: int
    places: list[PlaceAnswer] | None


def map_routes(seen: Seen, questions: Questions) -> APIRouter:
    """Return the route that tells the map of what is searched."""
    router = APIRouter(tags=["catalogue"], prefix="/v1", responses=ANY)
    maps = cache(Maps)  # one of all, and one for each part that a key is limited to

    @router.get("/map", response_model=MapAnswer, name="map")
    async def look(
        request: Request,
        known: Annotated[int, Query(ge=0, description="Number of the map that is known.")] = 0,
    ) -> Response:
        """Return items on a plane, near to each other if they are alike; who looks first waits."""
        return await questions.answer(partial(_told, maps(seen.by(request)), known), LARGE)

    return router


def _told(maps: Maps, known: int) -> MapAnswer:
    drawn = maps.look()
    if drawn is None:
        return MapAnswer(state="drawing", number=0, encoder=None, items=0, places=None)
    return MapAnswer(
        state="final" if drawn.is_final else "rough",
        number=drawn.number,
        encoder=drawn.encoder,
        items=drawn.count,
        places=None if drawn.number == known else _places(drawn),
    )


def _places(drawn: Map) -> list[PlaceAnswer]:
    places = drawn.places.round(DIGITS).tolist()
    return [
        PlaceAnswer(
            id=point.id, key=point.payload["key"], x=x, y=y, title=point.payload.get("title", ""),
            tags=list(point.payload.get("labels") or point.payload.get("keywords") or ())[:3],
            duration_s=point.payload["duration_s"], size=point.payload["size"],
        )
        for point, (x, y) in zip(drawn.points, places, strict=True)
    ]  # fmt: skip
