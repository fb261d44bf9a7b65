"""The routes of the query service: search, similar, items, embed, feedback.

GET  /v1/search?q=a dog barking&limit=5&keyword=park     by words
POST /v1/search        {"q": ..., "like": ID, ...}       by words, by an item, or both
POST /v1/search/sound?limit=5                            by the sound in the body
GET  /v1/similar/ID                                      more like an item
GET  /v1/items/ID                                        one item
GET  /v1/items/ID/vector                                 its vector, to ask other deployments with
GET  /v1/items/ID/timeline?q=a dog barking               where in it that is heard
POST /v1/items         {"ids": [...]}                    several of them
GET  /v1/items/ID/labels                                 what it may be called
POST /v1/labels        {"ids": [...]}                    likewise of several
GET  /v1/embed?q=a dog barking                           a text's vector
POST /v1/feedback      {"q": ..., "verdicts": [...]}     what fits, where the owner wants to know
GET  /v1/feedback                                        whether the caller may say so
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Self

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from audiofuse.core.errors import NotFound
from audiofuse.core.feedback.book import Book, BookFull
from audiofuse.core.feedback.verdicts import Verdict
from audiofuse.core.index.index import Point
from audiofuse.core.query import Question, check_words
from audiofuse.core.search.labels import Labels, Suggested
from audiofuse.workers.service import models
from audiofuse.workers.service.admission.keys import Caller, Right
from audiofuse.workers.service.admission.problems import ANY, Refusal, answers
from audiofuse.workers.service.admission.questions import LARGE_HITS, Questions, Uploads
from audiofuse.workers.service.admission.seen import Seen
from audiofuse.workers.service.audio import Links, root_of

SOUND_BODY = {
    "requestBody": {
        "required": True,
        "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}
MAX_LABELLED = 100  # items of one request, with 12 kB of JSON of vectors each
LONG = LARGE_HITS + 1  # what counts as large, since a recording of hours has thousands of windows
Words = Annotated[models.ByWords, Query()]
Like = Annotated[models.Like, Query()]
Heard = Annotated[models.Heard, Query()]
SoundOptions = Annotated[models.BySound, Query()]


class Labelled(BaseModel):
    """Items that are to be named, by their ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ids: list[models.Id] = Field(
        min_length=1, max_length=MAX_LABELLED, description="Unknown ones are left out."
    )


class LabelAnswer(BaseModel):
    """The name of an AudioSet class, and how near the sound is to it: a cosine."""

    label: str = Field(examples=["Dog"])
    score: float


class LabelledAnswer(BaseModel):
    """What an item may be called, the nearest first; none where nothing is near."""

    id: str
    labels: list[LabelAnswer]


class LabelsAnswer(BaseModel):
    """Those of the items that there are, and the encoder version that listened."""

    encoder: str | None
    items: list[LabelledAnswer]

    @classmethod
    def of(cls, suggested: Suggested) -> Self:
        """Return suggestions as they are told."""
        items = [
            LabelledAnswer(
                id=id_, labels=[LabelAnswer(label=each.name, score=each.score) for each in labels]
            )
            for id_, labels in suggested.labels.items()
        ]
        return cls(encoder=suggested.encoder, items=items)


class Answers:
    """Asks what a request's caller may see, and tells what it found with links."""

    def __init__(self, seen: Seen, links: Links) -> None:
        """Answer from what is ``seen``, with ``links`` to the sounds."""
        self._seen = seen
        self._links = links
        self._labels = Labels()

    def search(self, question: Question, request: Request) -> models.FoundAnswer:
        """Answer a question."""
        found = self._seen.by(request).search(question)
        hits = [
            models.HitAnswer.of(hit, *self._where(hit.payload["bucket"], hit.key, request))
            for hit in found.hits
        ]
        return models.FoundAnswer(encoder=found.encoder, nothing=found.nothing, hits=hits)

    def item(self, id_: str, request: Request) -> models.ItemAnswer:
        """Tell of one item."""
        return self.told(self._seen.by(request).item(id_), request)

    def items(self, ids: Sequence[str], request: Request) -> models.SelectionAnswer:
        """Tell of several items, without what else their sidecars say."""
        told = [self.told(point, request) for point in self._seen.by(request).items(ids)]
        for each in told:
            each.payload.pop("extra", None)
        return models.SelectionAnswer(items=told)

    def told(self, point: Point, request: Request) -> models.ItemAnswer:
        """Tell of a point."""
        key = point.payload["key"]
        url, location = self._where(point.payload["bucket"], key, request)
        payload = models.shown(point.payload)
        return models.ItemAnswer(
            id=point.id, key=key, audio_url=url, location=location, payload=payload
        )

    def timeline(self, id_: str, question: Question, request: Request) -> models.TimelineAnswer:
        """Tell where in an item a question is heard."""
        return models.TimelineAnswer.of(self._seen.by(request).timeline(id_, question))

    def labels(self, ids: Sequence[str], request: Request) -> LabelsAnswer:
        """Tell what items may be called."""
        return LabelsAnswer.of(self._labels.suggest(self._seen.by(request), ids))

    def labels_of(self, id_: str, request: Request) -> LabelsAnswer:
        """Tell what one item may be called; ``NotFound`` if there is none."""
        told = self.labels([id_], request)
        if not told.items:
            raise NotFound(f"there is no item {id_}")
        return told

    def vector(self, id_: str, at_s: float | None, request: Request) -> models.EmbedAnswer:
        """Tell an item's vector."""
        version, vector = self._seen.by(request).vector(id_, at_s)
        return models.EmbedAnswer(encoder=version, vector=vector)

    def embed(self, text: str, request: Request) -> models.EmbedAnswer:
        """Tell a text's vector."""
        version, vector = self._seen.by(request).embed(text)
        return models.EmbedAnswer(encoder=version, vector=vector)

    def _where(self, bucket: str, key: str, request: Request) -> tuple[str | None, str | None]:
        """Return where a sound is heard and where it lies, for those who may hear it."""
        if Right.AUDIO not in request.state.caller.rights:
            return None, None
        return self._links.link(bucket, key, root_of(request)), self._links.location(bucket, key)


def search_routes(seen: Seen, links: Links, questions: Questions) -> APIRouter:
    """Return the routes that search."""
    router = APIRouter(tags=["search"], prefix="/v1", responses=ANY)
    answered, uploads = Answers(seen, links), Uploads()

    async def answer(question: Question, request: Request) -> Response:
        return await questions.answer(partial(answered.search, question, request), question.limit)

    @router.get("/search", response_model=models.FoundAnswer)
    async def search(request: Request, options: Words) -> Response:
        """Return the sounds nearest to a sentence, best first, with the parts of their score."""
        return await answer(options.question(options.q), request)

    @router.post("/search", response_model=models.FoundAnswer, responses=answers(404))
    async def search_by_all(request: Request, options: models.Query) -> Response:
        """Search by a sentence, by an item, or by both; the body has the options."""
        vector = options.vector.given() if options.vector else None
        question = options.question(options.q, options.like or "", at_s=options.at_s, vector=vector)
        return await answer(question, request)

    @router.post(
        "/search/sound", response_model=models.FoundAnswer, responses=answers(408),
        openapi_extra=SOUND_BODY,
    )  # fmt: skip
    async def search_by_sound(request: Request, options: SoundOptions) -> Response:
        """Return what sounds like the file in the body, of any format that is indexed, too."""
        async with uploads.received(request) as sound:  # before it takes anybody's place
            question = options.question(options.q, sound=sound)
            return await questions.answer_sound(partial(answered.search, question, request))

    @router.get("/similar/{id}", response_model=models.FoundAnswer, responses=answers(404))
    async def similar(request: Request, id: models.Id, options: Like) -> Response:  # noqa: A002 - its name in the URL
        """Return what is like an item, or like a moment of it, without the item itself."""
        return await answer(options.question(like=id, at_s=options.at_s), request)

    return router


def item_routes(seen: Seen, links: Links, questions: Questions) -> APIRouter:
    """Return the routes that tell of items, and of vectors."""
    router = APIRouter(tags=["items"], prefix="/v1", responses=ANY)
    answered = Answers(seen, links)

    @router.post("/items", response_model=models.SelectionAnswer)
    async def several(request: Request, selection: models.Selection) -> Response:
        """Return several items by their ids; what else their sidecars say only one by one."""
        work = partial(answered.items, selection.ids, request)
        return await questions.answer(work, len(selection.ids))

    @router.get("/items/{id}", response_model=models.ItemAnswer, responses=answers(404))
    async def item(request: Request, id: models.Id) -> Response:  # noqa: A002 - its name in the URL
        """Return one item, with all that its sidecar says."""
        return await questions.answer(partial(answered.item, id, request))

    @router.get("/items/{id}/vector", response_model=models.EmbedAnswer, responses=answers(404))
    async def vector(
        request: Request,
        id: models.Id,  # noqa: A002 - its name in the URL
        at_s: Annotated[models.Second, Query()] = None,
    ) -> Response:
        """Return an item's vector, or that of its moment, to search another deployment with."""
        return await questions.answer(partial(answered.vector, id, at_s, request))

    @router.get(
        "/items/{id}/timeline", response_model=models.TimelineAnswer, responses=answers(404)
    )
    async def timeline(request: Request, id: models.Id, options: Heard) -> Response:  # noqa: A002 - its name in the URL
        """Return how near each window of a recording is to a sentence, in the order of time."""
        question = Question(options.q, without=options.without)
        return await questions.answer(partial(answered.timeline, id, question, request), LONG)

    @router.get("/items/{id}/labels", response_model=LabelsAnswer, responses=answers(404))
    async def labels(request: Request, id: models.Id) -> Response:  # noqa: A002 - its name in the URL
        """Return what an item may be called by its sound; whoever asks first waits some seconds."""
        return await questions.answer(partial(answered.labels_of, id, request), LONG)

    @router.post("/labels", response_model=LabelsAnswer)
    async def several_labels(request: Request, selection: Labelled) -> Response:
        """Return what several items may be called."""
        return await questions.answer(partial(answered.labels, selection.ids, request), LONG)

    @router.get("/embed", response_model=models.EmbedAnswer, responses=answers(404))
    async def embed(
        request: Request, q: Annotated[models.Words, Query(examples=["a dog barking"])]
    ) -> Response:
        """Return a text's vector, to ask Qdrant with."""
        return await questions.answer(partial(answered.embed, q, request))

    return router


def feedback_routes(
    seen: Seen, open_book: Callable[[], Book] | None, questions: Questions
) -> APIRouter:
    """Return the route; without a book it refuses, and says what switches it on."""
    router = APIRouter(tags=["feedback"], prefix="/v1", responses=ANY)

    @router.get("/feedback", response_model=models.FeedbackTaken)
    async def feedback_taken(request: Request) -> models.FeedbackTaken:
        """Tell whether feedback is kept here, and this caller may give some."""
        caller: Caller = request.state.caller
        return models.FeedbackTaken(open=open_book is not None and Right.FEEDBACK in caller.rights)

    @router.post("/feedback", response_model=models.Kept, responses=answers(403, 404))
    async def feedback(request: Request, body: models.Feedback) -> Response:
        """Keep what is said of a question's hits, with the caller's name and the time."""
        caller: Caller = request.state.caller
        if open_book is None:
            detail = "this service keeps no feedback: its owner may set AUDIOFUSE_FEEDBACK=true"
            raise Refusal(404, "feedback-off", detail)
        if Right.FEEDBACK not in caller.rights:
            raise Refusal(403, "no-right", "this API key lacks the scope feedback")
        return await questions.answer(partial(_keep, seen, open_book(), request, body))

    return router


def _keep(seen: Seen, book: Book, request: Request, body: models.Feedback) -> models.Kept:
    """Write verdicts down, each of the item as it is now; ``NotFound`` for one that is not."""
    check_words(body.q)
    caller: Caller = request.state.caller
    points = [seen.by(request).item(said.item) for said in body.verdicts]
    verdicts = [
        Verdict(
            caller=caller.name, text=body.q, item=point.id, key=point.payload["key"],
            etag=point.payload["etag"], encoder=point.payload["encoder"], opinion=said.opinion,
        )
        for said, point in zip(body.verdicts, points, strict=True)
    ]  # fmt: skip
    try:
        book.add(verdicts)
    except BookFull as error:
        raise Refusal(429, "full", f"{error}: say it tomorrow") from error
    return models.Kept(kept=len(verdicts))
