"""The route that says why an object is found or not: GET /v1/explain?key=field/rain.wav."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import RootModel
from redis import RedisError

from audiofuse.core.errors import Unavailable
from audiofuse.core.query import MAX_PREFIX_CHARACTERS
from audiofuse.workers.repair.explain import Explainer, Explanation
from audiofuse.workers.service.admission.problems import ANY
from audiofuse.workers.service.admission.questions import Questions


class ExplanationAnswer(RootModel[Explanation]):
    """What is known of an object: state, why, object, sidecar, versions, letters."""


def explain_routes(explainer: Explainer, questions: Questions) -> APIRouter:
    """Return the route, which asks bucket, index and queue."""
    router = APIRouter(tags=["catalogue"], prefix="/v1", responses=ANY)

    @router.get("/explain", response_model=ExplanationAnswer)
    async def explain(
        key: Annotated[
            str,
            Query(min_length=1, max_length=MAX_PREFIX_CHARACTERS, examples=["field/rain.wav"]),
        ],
    ) -> Response:
        """Say why an object of the bucket is found or not, also if there is no such object."""

        def work() -> ExplanationAnswer:
            try:
                return ExplanationAnswer(explainer.explain(key))
            except RedisError as error:
                raise Unavailable(f"the broker does not answer: {error}") from error

        return await questions.answer(work)

    return router
