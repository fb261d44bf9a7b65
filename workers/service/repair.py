"""The routes of repair: what was rejected and why, and trying it again.

GET  /v1/rejected?reason=damaged&limit=50    newest first
POST /v1/rejected/retry {"keys": [...]}      once more, at once
GET  /v1/explain?key=field/rain.wav          why an object is found or not
"""

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import islice
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, RootModel
from redis import RedisError

from audiofuse.core.errors import Reason, Unavailable
from audiofuse.core.items import is_audio
from audiofuse.core.query import MAX_PREFIX_CHARACTERS
from audiofuse.core.settings import Settings
from audiofuse.workers.intake.events import key_to_sync
from audiofuse.workers.queue.broker import Dispatcher, connect_redis, create_celery, open_lanes
from audiofuse.workers.queue.dead_letters import DeadLetter, DeadLetters
from audiofuse.workers.repair.explain import Explainer, Explanation
from audiofuse.workers.service.admission.keys import Caller, Right
from audiofuse.workers.service.admission.problems import ANY, Refusal, answers
from audiofuse.workers.service.admission.questions import Questions
from audiofuse.workers.service.audio import Links, root_of
from audiofuse.workers.telemetry.names import Lane

T = TypeVar("T")

MOST = 500  # letters of one answer
MOST_RETRIED = 50  # keys of one request: long ones fill a body
LOOKED_AT = 10_000  # letters that one answer looks at for those with a prefix
MOST_WAITING = 5000  # live messages beyond which nothing is queued from here
RETRY_AFTER_S = 30

Prefix = Annotated[str, Field(max_length=MAX_PREFIX_CHARACTERS, description="How keys begin.")]
Key = Annotated[str, Field(min_length=1, max_length=MAX_PREFIX_CHARACTERS)]


class RejectedQuery(BaseModel):
    """Which letters."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    reason: Reason | None = Field(default=None, description="Only what was rejected for this.")
    prefix: Prefix = ""
    before: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Only verdicts up to this Unix time."
    )
    limit: int = Field(default=50, ge=1, le=MOST, description="Most of them to return.")


class LetterAnswer(BaseModel):
    """Why an object is not in the index; ``at``: Unix time of the last of ``count`` verdicts."""

    key: str
    reason: Reason
    detail: str
    at: float
    count: int
    audio_url: str | None = Field(description="Where to hear what there is, for some minutes.")
    location: str | None


class RejectedAnswer(BaseModel):
    """How many objects are rejected, for which reasons, and the newest that were asked for."""

    rejected: int
    reasons: dict[str, int]
    found: list[LetterAnswer]


class Retry(BaseModel):
    """Which objects are tried again."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    keys: list[Key] = Field(min_length=1, max_length=MOST_RETRIED)


class RetryAnswer(BaseModel):
    """How many objects are queued: those that are rejected still."""

    queued: int


class ExplanationAnswer(RootModel[Explanation]):
    """What is known of an object: state, why, object, sidecar, versions, letters."""


class Repair:
    """Reads the letters of the settings' bucket, and hands their keys over to the workers."""

    def __init__(self, settings: Settings, links: Links) -> None:
        """Connect to nothing before something is asked; ``links`` lead to the objects."""
        self._letters = DeadLetters(connect_redis(settings), settings.index_name)
        self._lanes = open_lanes(settings)
        self._dispatcher = cache(lambda: Dispatcher(create_celery(settings)))
        self._links = links

    def look(self, asked: RejectedQuery, request: Request) -> RejectedAnswer:
        """Tell what was rejected."""
        caller: Caller = request.state.caller
        before = math.inf if asked.before is None else asked.before
        keys = islice(self._letters.keys(asked.reason, "", before), LOOKED_AT)
        known = (key for key in keys if caller.reaches(key) and key.startswith(asked.prefix))
        letters = self._letters.get(islice(known, asked.limit)).values()
        reasons = self._reasons(caller)
        return RejectedAnswer(
            rejected=sum(reasons.values()),
            reasons={str(reason): count for reason, count in reasons.items()},
            found=[self._told(letter, request) for letter in letters],
        )

    def _reasons(self, caller: Caller) -> Mapping[Reason, int]:
        """Count the letters of each reason; to whom not all are known, among the latest only."""
        if caller.places is None:
            return self._letters.reasons()
        counts = {
            reason: sum(map(caller.reaches, islice(self._letters.keys(reason), LOOKED_AT)))
            for reason in self._letters.reasons()
        }
        return {reason: count for reason, count in counts.items() if count}

    def _told(self, letter: DeadLetter, request: Request) -> LetterAnswer:
        url = location = None
        if is_audio(letter.key) and Right.AUDIO in request.state.caller.rights:
            bucket = self._links.bucket_of(letter.key)
            url = self._links.link(bucket, letter.key, root_of(request))
            location = self._links.location(bucket, letter.key)
        return LetterAnswer(
            key=letter.key, reason=letter.reason, detail=letter.detail, at=letter.at,
            count=letter.count, audio_url=url, location=location,
        )  # fmt: skip

    def retry(self, keys: list[str], caller: Caller) -> RetryAnswer:
        """Queue those of the keys that are rejected; a letter stays until the next verdict."""
        if self._lanes.waiting(Lane.LIVE) >= MOST_WAITING:
            detail = "the workers have more to do than they should: try again later"
            raise Refusal(503, "busy", detail, Retry_After=str(RETRY_AFTER_S))
        rejected = self._letters.get(dict.fromkeys(filter(caller.reaches, keys)))
        for key in rejected:
            self._dispatcher().sync(key_to_sync(key) or key, Lane.LIVE)
        return RetryAnswer(queued=len(rejected))


def repair_routes(repair: Repair | None, questions: Questions) -> APIRouter:
    """Return the routes of repair; without a bucket there is nothing to repair."""
    router = APIRouter(tags=["repair"], prefix="/v1/rejected", responses=ANY | answers(403, 404))

    def allowed(request: Request) -> Repair:
        _check_scope(request)
        if repair is None:
            raise Refusal(404, "not-found", "this service knows no bucket: set AUDIOFUSE_BUCKET")
        return repair

    @router.get("", response_model=RejectedAnswer, name="rejected")
    async def look(request: Request, asked: Annotated[RejectedQuery, Query()]) -> Response:
        """Return which objects were rejected and why, the newest first."""
        work = partial(allowed(request).look, asked, request)
        return await questions.answer(partial(_reached, work), asked.limit)

    @router.post("/retry", response_model=RetryAnswer)
    async def retry(request: Request, wanted: Retry) -> Response:
        """Have workers try rejected objects again, at once."""
        work = partial(allowed(request).retry, wanted.keys, request.state.caller)
        return await questions.answer(partial(_reached, work), len(wanted.keys))

    return router


def explain_routes(explainer: Explainer, questions: Questions) -> APIRouter:
    """Return the route, which asks bucket, index and queue."""
    router = APIRouter(tags=["repair"], prefix="/v1", responses=ANY | answers(403))

    @router.get("/explain", response_model=ExplanationAnswer)
    async def explain(
        request: Request,
        key: Annotated[
            str,
            Query(min_length=1, max_length=MAX_PREFIX_CHARACTERS, examples=["field/rain.wav"]),
        ],
    ) -> Response:
        """Say why an object of the bucket is found or not, also if there is no such object."""
        _check_scope(request)
        caller: Caller = request.state.caller
        if not caller.reaches(key):
            raise Refusal(403, "not-allowed", "this key may know nothing of such a name")
        work = partial(explainer.explain, key, tells_waiting=caller.places is None)
        return await questions.answer(partial(_reached, lambda: ExplanationAnswer(work())))

    return router


def _check_scope(request: Request) -> None:
    """Refuse who may not know of verdicts: these may name what searching does not show."""
    request.state.caller.require(Right.REPAIR)


def _reached(work: Callable[[], T]) -> T:
    """Do what asks Redis; ``Unavailable`` while that is away."""
    try:
        return work()
    except RedisError as error:
        raise Unavailable(f"the broker does not answer: {error}") from error
