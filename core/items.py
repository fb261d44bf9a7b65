"""Items and their metadata: what a key names, where its sidecar lies, how words become one text."""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, Self
from uuid import NAMESPACE_URL, UUID, uuid5

import pydantic_core
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from audiofuse.core.errors import Reason, Rejected

AUDIO_SUFFIXES = frozenset(
    [
        ".aac",
        ".aif",
        ".aiff",
        ".caf",
        ".flac",
        ".m4a",
        ".m4b",
        ".mka",
        ".mp2",
        ".mp3",
        ".mp4",
        ".oga",
        ".ogg",
        ".opus",
        ".wav",
        ".wave",
        ".weba",
        ".webm",
        ".wma",
    ]
)
SIDECAR_SUFFIX = ".json"
MAX_SIDECAR_BYTES = 256 * 1024  # sidecars are notes, not data; the payload must stay small
MAX_NESTING = 64  # Qdrant reads 128 levels, those of the request around the payload included


@dataclass(frozen=True)
class ObjectInfo:
    """One object of the bucket as it is now. ``modified_ms`` is Unix time in milliseconds."""

    key: str
    etag: str
    size: int
    modified_ms: int
    user_metadata: Mapping[str, str] = field(default_factory=dict)


def is_audio(key: str) -> bool:
    """Whether the key's suffix is one of a sound file; hidden files (``.name``) are never items."""
    name = key.rpartition("/")[2]
    return PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES and not name.startswith(".")


def is_sidecar(key: str) -> bool:
    """Whether the key may be a sidecar; hidden files never are."""
    name = key.rpartition("/")[2]
    return name.endswith(SIDECAR_SUFFIX) and not name.startswith(".")


def sidecar_keys(audio_key: str) -> tuple[str, str]:
    """Return the keys of the sidecars an audio key may have; the first that exists wins."""
    stem = audio_key.removesuffix(PurePosixPath(audio_key).suffix)  # keys are no paths: a//b
    return audio_key + SIDECAR_SUFFIX, stem + SIDECAR_SUFFIX


def sidecar_stem(sidecar_key: str) -> str:
    """Return how the audio keys that a sidecar describes begin: ``rain`` of ``rain.json``."""
    return sidecar_key.removesuffix(SIDECAR_SUFFIX)


def describes(sidecar_key: str, audio_key: str) -> bool:
    """Whether the first key may be the sidecar of the second."""
    return is_audio(audio_key) and sidecar_key in sidecar_keys(audio_key)


def point_id(bucket: str, key: str) -> UUID:
    """Return the id of the one point of an object: uuid5 of its S3 URI."""
    return uuid5(NAMESPACE_URL, f"s3://{bucket}/{key}")


def moment_id(item_id: str, number: int) -> str:
    """Return the id of a moment: its item's, with the number, from 0, in place of the last 32 bits.

    So a walk in the order of ids meets the moments of an item side by side and in their order, and
    items in the order of a walk of theirs.
    """
    return str(UUID(int=UUID(item_id).int >> 32 << 32 | number))


def _split(tags: str) -> tuple[str, ...]:
    return _trimmed(tuple(tags.split(";")))


def _trimmed(tags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(tag.strip() for tag in tags if tag.strip())


def _split_tags(value: object) -> object:
    return _split(value) if isinstance(value, str) else value


Tags = Annotated[tuple[str, ...], BeforeValidator(_split_tags), AfterValidator(_trimmed)]


def _is_storable(value: object, nesting: int = 0) -> bool:
    """Whether an index can hold a JSON value: its numbers finite, and not nested too deep."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return nesting < MAX_NESTING and all(_is_storable(each, nesting + 1) for each in value)
    return not isinstance(value, int | float) or abs(value) <= sys.float_info.max


class _Sidecar(BaseModel):
    """The sidecar file; ``keywords`` and ``labels`` may also be one string split at semicolons."""

    model_config = ConfigDict(extra="allow")
    title: str = ""
    description: str = ""
    keywords: Tags = ()
    labels: Tags = ()


@dataclass(frozen=True)
class Metadata:
    """The words of an item: open-set ``keywords``, closed-set ``labels``, a full sentence."""

    title: str = ""
    description: str = ""
    keywords: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Parse a sidecar; a broken one raises ``Rejected(BAD_SIDECAR)`` that names the field."""
        try:
            value = pydantic_core.from_json(
                content.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False
            )
        except ValueError as error:
            raise Rejected(Reason.BAD_SIDECAR, f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Rejected(
                Reason.BAD_SIDECAR, f"a JSON object is needed, not a {type(value).__name__}"
            )
        if not _is_storable(value):
            raise Rejected(
                Reason.BAD_SIDECAR,
                f"it is nested more than {MAX_NESTING} deep, or a number is out of range",
            )
        present = {name: field for name, field in value.items() if field is not None}
        try:
            sidecar = _Sidecar.model_validate(present)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise Rejected(Reason.BAD_SIDECAR, f'field "{where}": {first["msg"]}') from None
        known = sidecar.model_dump(include=set(_Sidecar.model_fields))
        return cls(**known, extra=sidecar.model_extra or {})

    def filled_from(self, user_metadata: Mapping[str, str]) -> Self:
        """Fill what is missing from S3 user metadata (``x-amz-meta-title`` and so on)."""
        return type(self)(
            title=self.title or user_metadata.get("title", ""),
            description=self.description or user_metadata.get("description", ""),
            keywords=self.keywords or _split(user_metadata.get("keywords", "")),
            labels=self.labels or _split(user_metadata.get("labels", "")),
            extra=self.extra,
        )

    @property
    def text(self) -> str:
        """Return the one text the text tower reads: the sentence parts first, then the tags.

        Title and description lead because the tower reads only the first tokens. Empty when there
        is nothing to read.
        """
        parts = (self.title, self.description, *self.keywords, *self.labels)
        return " ".join(part.strip() for part in parts if part.strip())


@dataclass(frozen=True)
class Item:
    """One audio object with its sidecar, as the bucket holds them now."""

    bucket: str
    audio: ObjectInfo
    sidecar: ObjectInfo | None = None

    @property
    def key(self) -> str:
        """The audio object's key, which names the item."""
        return self.audio.key

    @property
    def sidecar_etag(self) -> str:
        """The sidecar's etag, empty without one: part of what decides whether to work again."""
        return self.sidecar.etag if self.sidecar else ""

    def agrees_with(self, payload: Mapping[str, Any]) -> bool:
        """Whether a point's payload describes the item as it is now."""
        audio = self.audio
        return payload["key"] == self.key and agrees(
            payload, audio.etag, self.sidecar_etag, audio.modified_ms, audio.user_metadata
        )


def agrees(
    payload: Mapping[str, Any],
    etag: str,
    sidecar_etag: str,
    modified_ms: int,
    user_metadata: Mapping[str, str] | None = None,
) -> bool:
    """Whether a point's payload describes an object and its sidecar in this state.

    ``sidecar_etag`` is empty without a sidecar. ``user_metadata`` is ``None`` where it is not
    known: listings do not tell it.
    """
    indexed = (payload["etag"], payload["sidecar_etag"], payload["modified"])
    # S3 tells modification times in whole seconds, within which user metadata can change.
    same_words = user_metadata is None or (
        payload.get("user_metadata_hash", "") == user_metadata_hash(user_metadata)
    )
    return same_words and indexed == (etag, sidecar_etag, modified_ms)


def user_metadata_hash(user_metadata: Mapping[str, str]) -> str:
    """Return what tells user metadata apart, in hex; empty if there is none."""
    if not user_metadata:
        return ""
    return hashlib.sha256(json.dumps(user_metadata, sort_keys=True).encode()).hexdigest()
