"""What the query service is asked and what it answers, as its OpenAPI tells it."""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from audiofuse.core.feedback.verdicts import Opinion
from audiofuse.core.moments.moments import Moment
from audiofuse.core.query import (
    MAX_DEPTH,
    MAX_LIMIT,
    MAX_PREFIX_CHARACTERS,
    MAX_QUERY_CHARACTERS,
    MAX_TAG_CHARACTERS,
    MAX_TAGS,
    Filter,
    Question,
    Vector,
)
from audiofuse.core.search.hits import Hit, Timeline

UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
LONGEST_S = 10**9
MAX_VERDICTS = 100
MAX_DIM = 10_000  # numbers of a vector
HIDDEN = frozenset(
    {"item_norm", "user_metadata_hash", "sidecar_etag", "sidecar_problem", "moments_state"}
)

Words = Annotated[str, Field(max_length=MAX_QUERY_CHARACTERS)]
Tags = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_TAG_CHARACTERS)]],
    Field(max_length=MAX_TAGS),
]


def _is_day(value: object) -> object:
    """Refuse what pydantic would take for seconds since 1970."""
    if isinstance(value, str) and not DAY.fullmatch(value):
        raise ValueError("a day is written as 2026-01-31")
    return value


Day = Annotated[date, BeforeValidator(_is_day)]
Seconds = Annotated[float, Field(ge=0, le=LONGEST_S)]
Second = Annotated[
    Seconds | None,
    Field(description="Its moment at this second is meant, and not all of the recording."),
]
Id = Annotated[str, Field(pattern=UUID, examples=["6ba7b810-9dad-51d1-80b4-00c04fd430c8"])]
Version = Annotated[str, Field(max_length=100, examples=["default-1a2b3c"])]


class Likeness(BaseModel):
    """An item's vector, as the ``/v1/items/ID/vector`` of the deployment that has it tells it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    encoder: Version
    vector: list[Annotated[float, Field(allow_inf_nan=False)]] = Field(max_length=MAX_DIM)

    def given(self) -> Vector:
        """Return it as a part of a question."""
        return Vector(self.encoder, tuple(self.vector))


class Where(BaseModel):
    """Which items are meant: those for which all holds. What is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    keyword: Tags = Field(default=[], description="Keywords that a hit has, as written; all.")
    label: Tags = Field(default=[], description="Labels that a hit has, as written; all.")
    min_duration: Seconds | None = Field(default=None, description="Shortest, in seconds.")
    max_duration: Seconds | None = Field(default=None, description="Longest, in seconds.")
    since: Day | None = Field(default=None, description="First day (UTC) of modification.")
    until: Day | None = Field(default=None, description="Last day (UTC) of modification.")
    bucket: str = Field(default="", max_length=255, description="Bucket of the hits.")
    prefix: str = Field(
        default="", max_length=MAX_PREFIX_CHARACTERS, description="How the keys of hits begin."
    )
    has_text: Literal["yes", "no"] | None = Field(
        default=None, description="Only hits with metadata, or only those without."
    )

    def where(self) -> Filter:
        """Return the conditions; ``QueryError`` if they are none."""
        return Filter(
            keywords=tuple(self.keyword),
            labels=tuple(self.label),
            min_duration_s=self.min_duration,
            max_duration_s=self.max_duration,
            since=_begin(self.since),
            until=_end(self.until),
            bucket=self.bucket,
            prefix=self.prefix,
            has_text=None if self.has_text is None else self.has_text == "yes",
        )


class Options(Where):
    """How to search, whatever by."""

    limit: int = Field(default=10, ge=1, le=MAX_LIMIT, description="Most hits to return.")
    offset: int = Field(default=0, ge=0, lt=MAX_DEPTH, description="Hits to pass over.")
    without: Words = Field(
        default="", description="Words for what hits shall not be like.", examples=["music"]
    )
    balance: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="What counts: 0 audio alone, 1 metadata alone, 0.5 both as the encoder adds "
        "them. Without one a sound alone is compared with sounds alone, all else by 0.5.",
    )
    min_relevance: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Of the nearest 200 hits only those that are at least this probably what is "
        "meant. With words alone, and where the live encoder has a calibration.",
    )
    unique: bool = Field(default=False, description="Show sounds of the same content once.")
    extra: bool = Field(
        default=False, description="Tell with each hit what else its sidecar says, too."
    )
    moments: bool = Field(
        default=False,
        description="Find moments and no recordings, so that one may be a hit several times; a "
        "sound of one window is one itself.",
    )

    def question(
        self, text: str = "", like: str = "", sound: Path | None = None,
        at_s: float | None = None, vector: Vector | None = None,
    ) -> Question:  # fmt: skip
        """Return the question by these options; ``QueryError`` if it is none."""
        return Question(
            text=text, like=like, at_s=at_s, vector=vector, sound=sound, without=self.without,
            balance=self.balance, limit=self.limit, offset=self.offset, unique=self.unique,
            extra=self.extra, moments=self.moments, min_relevance=self.min_relevance,
            where=self.where(),
        )  # fmt: skip


class ByWords(Options):
    """A search by words."""

    q: Words = Field(description="A sentence that describes a sound.", examples=["a dog barking"])


class BySound(Options):
    """A search by a sound, and words with it if there are any."""

    q: Words = Field(default="", description="Words for what is to be heard besides.")


class Query(Options):
    """A search by words, by an item, or by both."""

    q: Words = Field(default="", description="A sentence.", examples=["a dog barking"])
    like: Id | None = Field(default=None, description="Id of an item that hits shall be like.")
    at_s: Second = None
    vector: Likeness | None = Field(
        default=None, description="The vector of `like`, where another deployment has that item."
    )


class Like(Options):
    """A search by an item, or by a moment of it."""

    at_s: Second = None


class Heard(BaseModel):
    """What is sought in one recording."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    q: Words = Field(description="A sentence that describes a sound.", examples=["a dog barking"])
    without: Words = Field(default="", description="Words for what it shall not be like.")


class Selection(BaseModel):
    """Items by their ids."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ids: list[Id] = Field(
        min_length=1, max_length=MAX_LIMIT, description="Ids of items; unknown ones are left out."
    )


class Excerpt(BaseModel):
    """A part of a sound, in seconds from its beginning."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    start_s: Seconds = Field(examples=[750])
    end_s: Seconds = Field(examples=[755])


class MomentAnswer(BaseModel):
    """A part of a recording, in seconds from its beginning; its score is that of its best window.

    Scores are cosines. Where a ``balance`` is asked for, they are weighed by it.
    """

    start_s: float = Field(examples=[750.0])
    end_s: float = Field(examples=[755.0])
    score: float

    @classmethod
    def of(cls, moment: Moment) -> Self:
        """Return a moment as it is told."""
        return cls(start_s=moment.start_s, end_s=moment.end_s, score=moment.score)


class TimelineAnswer(BaseModel):
    """How near each window of a recording is to a question, and the encoder that compared them."""

    encoder: str
    windows: list[MomentAnswer] = Field(
        description="In the order of time; of a sound without moments one, the whole."
    )

    @classmethod
    def of(cls, timeline: Timeline) -> Self:
        """Return a timeline as it is told."""
        return cls(encoder=timeline.encoder, windows=list(map(MomentAnswer.of, timeline.windows)))


class PayloadFields(BaseModel):
    """What is kept of an item. Releases may add to it; ``extra`` comes on demand only."""

    model_config = ConfigDict(extra="allow")
    bucket: str
    key: str
    etag: str
    modified: int = Field(description="When the object was modified: Unix time in milliseconds.")
    size: int = Field(description="Bytes.")
    title: str
    description: str
    keywords: list[str]
    labels: list[str]
    has_text: Literal["yes", "no"]
    encoder: str
    duration_s: float
    sample_rate: int
    channels: int
    content_hash: str
    moments: int = 0
    indexed_at: int = Field(0, description="Unix time in milliseconds.")


# Told as it is kept: to check each hit against its description would take longer than to send it.
Payload = Annotated[dict[str, Any], WithJsonSchema(PayloadFields.model_json_schema())]


class HitAnswer(BaseModel):
    """An item found; ``audio`` and ``metadata`` add up to ``score``, the cosine."""

    id: str
    key: str = Field(examples=["field/rain.wav"])
    score: float = Field(examples=[0.61])
    audio: float | None = Field(description="Null where fusion is no sum.", examples=[0.35])
    metadata: float | None = Field(examples=[0.26])
    relevance: float | None = Field(
        description="How probably it is what is meant, from 0 to 1. Null where that is not known: "
        "with anything but words asked for, and where the encoder has no calibration.",
        examples=[0.72],
    )
    copies: list[str] = Field(description="Keys of other sounds with the same content.")
    moments: list[MomentAnswer] = Field(
        description="Where in a longer recording it is heard: at most three, best first. With "
        "``moments`` asked for one, that was found. None of a sound of one window."
    )
    audio_url: str | None = Field(description="Where to hear it, for some minutes.")
    location: str | None = Field(
        description="Where it lies: its S3 URI, or its path where the bucket is a folder.",
        examples=["s3://sounds/field/rain.wav"],
    )
    payload: Payload

    @classmethod
    def of(cls, hit: Hit, audio_url: str | None, location: str | None) -> Self:
        """Return a hit as it is told."""
        return cls(
            id=hit.id, key=hit.key, score=hit.score, audio=hit.audio, metadata=hit.metadata,
            relevance=hit.relevance, copies=list(hit.copies),
            moments=list(map(MomentAnswer.of, hit.moments)), audio_url=audio_url,
            location=location, payload=shown(hit.payload),
        )  # fmt: skip


class FoundAnswer(BaseModel):
    """Hits, best first, and the encoder version that found them; null before the first item."""

    encoder: str | None = Field(examples=["default-1a2b3c"])
    nothing: bool | None = Field(
        description="True: nothing here sounds like that, and the hits are merely the nearest. "
        "Null where that is not known: as relevance, behind the first page, and where only "
        "recordings of more than a minute might answer."
    )
    hits: list[HitAnswer]


class ItemAnswer(BaseModel):
    """One item."""

    id: str
    key: str
    audio_url: str | None
    location: str | None
    payload: Payload


class SelectionAnswer(BaseModel):
    """Those of the items that there are, in the order in which they were asked for."""

    items: list[ItemAnswer]


class EmbedAnswer(BaseModel):
    """A vector of unit length, and the encoder version in whose space it is."""

    encoder: str
    vector: list[float]


class Said(BaseModel):
    """What is said of one item: that it fits, misses, or is the very sound that was sought.

    Of the same caller, question and item what is said last counts; ``withdrawn`` takes it back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    item: Id
    opinion: Opinion


class Feedback(BaseModel):
    """What is said of a question's hits."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    q: Words = Field(description="The question's words.", examples=["a dog barking"])
    verdicts: list[Said] = Field(min_length=1, max_length=MAX_VERDICTS)


class FeedbackTaken(BaseModel):
    """Whether feedback of this caller is kept."""

    open: bool


class Kept(BaseModel):
    """How many verdicts were kept."""

    kept: int


class Alive(BaseModel):
    """That the process is alive, and where it computes: device and library by encoder."""

    status: Literal["alive"] = "alive"
    encoders: dict[str, str]


class Health(BaseModel):
    """What the service has loaded, and whether the index answers."""

    loaded: list[str]
    index: Literal["answers", "away"]


def shown(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a payload is for others."""
    return {name: value for name, value in payload.items() if name not in HIDDEN}


def _begin(day: date | None) -> datetime | None:
    return datetime.combine(day, time.min, UTC) if day else None


def _end(day: date | None) -> datetime | None:
    """Return when a day is over; the last that there is never ends."""
    return _begin(day + timedelta(days=1)) if day and day < date.max else None
