"""What may be asked: words, a sound, an item, and which items. Light, so every front end checks it.

Question("a dog barking")                                by words
Question(sound=Path("dog.wav"))                          sounds like this
Question(like="1f0d...")                                 more like this item
Question("in a tunnel", sound=..., without="music", where=Filter(labels=("Dog",)))
"""

import string
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from uuid import UUID

from audiofuse.core.errors import QueryError

MAX_QUERY_CHARACTERS = 1000  # towers read 32 or 128 tokens; this long is a mistake
MAX_LIMIT = 1000  # hits of one answer, some 10 kB each: more are a walk, not a search
MAX_DEPTH = 10_000  # hits that are passed over cost as much as those that are shown
MAX_TAGS = 20
MAX_TAG_CHARACTERS = 200
MAX_PREFIX_CHARACTERS = 1024  # of an S3 key, in bytes
CANDIDATES = 200  # nearest items that are ranked anew where the index cannot rank by itself
EVEN = 0.5  # the balance in which the encoder itself adds audio and metadata

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower-case and drop ASCII punctuation, as arXiv 2406.15897 does for queries and metadata."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


@dataclass(frozen=True)
class Place:
    """Where items lie: their keys begin with ``prefix``, in one ``bucket`` or, without, in any."""

    prefix: str
    bucket: str = ""

    def has(self, key: str, bucket: str) -> bool:
        """Whether an object lies here."""
        return key.startswith(self.prefix) and self.bucket in {"", bucket}


Places = tuple[Place, ...] | None  # any of them; ``None`` means anywhere, none at all nowhere


def lies_within(key: str, bucket: str, within: Places) -> bool:
    """Whether an object lies in one of some places."""
    return within is None or any(place.has(key, bucket) for place in within)


@dataclass(frozen=True)
class Filter:
    """Which items may be found: those for which all holds that is given.

    ``keywords`` and ``labels`` are compared as they are written, and an item must have each.
    ``since`` and ``until`` bound when the object was modified, the second excluded; they need a
    time zone. ``prefix`` is how the key begins, ``outside`` how it must not begin. ``content_hash``
    is that of the object's bytes. ``besides`` are ids of items to leave out. ``within`` are the
    places that whoever asks may see at all.
    """

    keywords: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    min_duration_s: float | None = None
    max_duration_s: float | None = None
    since: datetime | None = None
    until: datetime | None = None
    bucket: str = ""
    prefix: str = ""
    outside: tuple[str, ...] = ()
    has_text: bool | None = None
    content_hash: str = ""
    besides: tuple[str, ...] = ()
    within: Places = None

    def __post_init__(self) -> None:
        """Raise ``QueryError`` if this is no condition."""
        for name, tags in (("keywords", self.keywords), ("labels", self.labels)):
            if len(tags) > MAX_TAGS or any(len(tag) > MAX_TAG_CHARACTERS for tag in tags):
                raise QueryError(
                    f"{name}: at most {MAX_TAGS}, of at most {MAX_TAG_CHARACTERS} characters each"
                )
        if len(self.prefix) > MAX_PREFIX_CHARACTERS:
            raise QueryError(f"the prefix has more than {MAX_PREFIX_CHARACTERS} characters")
        for moment in (self.since, self.until):
            if moment and moment.tzinfo is None:
                raise QueryError(f"{moment} has no time zone")


EVERYTHING = Filter()


class Sort(StrEnum):
    """In which order items are listed that nobody asked a question about."""

    ID = "id"  # which stays as it is while items come and go
    NEWEST = "newest"
    OLDEST = "oldest"
    LONGEST = "longest"
    SHORTEST = "shortest"
    RANDOM = "random"  # anew each time


@dataclass(frozen=True)
class Vector:
    """A vector ``(dim,)`` that another deployment told, and the encoder version that made it."""

    encoder: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Question:
    """What to find: by ``text``, by a ``sound`` file, ``like`` the item with this id, or by all.

    ``at_s`` means the item's moment at that second, from its beginning. ``vector`` is that of the
    item or of its moment, where another deployment has the item. With ``moments`` moments
    are found and no recordings, a sound of one window being one itself.
    ``without`` are words for what the hits shall not be like. ``balance`` shifts what counts, from
    0, audio alone, to 1, metadata alone; without one a sound alone is compared with sounds alone,
    and all else as the encoder adds them. ``unique`` shows sounds of the same content once. Where
    the index cannot rank so by itself, its ``CANDIDATES`` nearest items, and as many recordings by
    their nearest moments, are ranked anew; of these ``min_relevance``, from 0 to 1, leaves
    out what is less probably meant, which is known of questions by words alone. ``extra`` has hits
    tell what else their sidecars say, which may be long.
    """

    text: str = ""
    sound: Path | None = None
    like: str = ""
    at_s: float | None = None
    vector: Vector | None = None
    without: str = ""
    balance: float | None = None
    where: Filter = EVERYTHING
    limit: int = 10
    offset: int = 0
    unique: bool = False
    extra: bool = False
    moments: bool = False
    min_relevance: float | None = None

    def __post_init__(self) -> None:
        """Raise ``QueryError`` if this is no question."""
        if self.text or not (self.sound or self.like):
            check_words(self.text)
        if self.without:
            check_words(self.without)
        if self.like:
            check_id(self.like)
        if self.at_s is not None and not (self.like and self.at_s >= 0):
            raise QueryError("at_s is a second of the item that hits are like, from 0 on")
        if self.vector and (not self.like or self.at_s is not None):
            raise QueryError("vector is that of the item that hits are like, or of its moment")
        if self.balance is not None and not 0 <= self.balance <= 1:
            raise QueryError(f"balance must be from 0 to 1, not {self.balance}")
        self._check_relevance()
        if not 1 <= self.limit <= MAX_LIMIT:
            raise QueryError(f"limit must be from 1 to {MAX_LIMIT}, not {self.limit}")
        if self.offset < 0:
            raise QueryError(f"offset must be at least 0, not {self.offset}")
        chooses = self.ranks_anew or self.moments or self.min_relevance is not None
        depth = CANDIDATES if chooses else MAX_DEPTH
        if self.offset + self.limit > depth:
            raise QueryError(f"offset and limit reach beyond {depth} hits: narrow the question")

    def _check_relevance(self) -> None:
        if self.min_relevance is None:
            return
        if not 0 <= self.min_relevance <= 1:
            raise QueryError(f"min_relevance must be from 0 to 1, not {self.min_relevance}")
        if not self.is_by_words:
            raise QueryError(
                "min_relevance goes with words alone: no sound, no item, no `without`, no balance"
            )

    @property
    def is_by_words(self) -> bool:
        """Whether words alone are asked for, as the encoder compares them."""
        others = self.sound or self.like or self.without
        return not others and self.weight_of_metadata == EVEN

    @property
    def ranks_anew(self) -> bool:
        """Whether the index's own ranking is not the answer yet."""
        return self.weight_of_metadata != EVEN or self.unique

    @property
    def weight_of_metadata(self) -> float:
        """The balance that is meant where none is given."""
        if self.balance is not None:
            return self.balance
        return 0.0 if self.sound and not (self.text or self.like) else EVEN


def check_words(text: str) -> None:
    """Raise ``QueryError`` if nothing can be found by ``text``."""
    if not normalise(text):
        raise QueryError("the query has no words: describe a sound, e.g. 'a dog barking'")
    if len(text) > MAX_QUERY_CHARACTERS:
        raise QueryError(f"the query has {len(text)} characters; at most {MAX_QUERY_CHARACTERS}")


def check_id(id_: str) -> None:
    """Raise ``QueryError`` if no item could have this id."""
    try:
        known = str(UUID(id_)) == id_
    except ValueError:
        known = False
    if not known:
        raise QueryError(f"{id_[:40]!r} is no item's id: take the id of a hit")
