"""Events: what a notification says, in the dialects in which buckets speak."""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import unquote_plus

from core.errors import AudiofuseError
from core.items import is_audio, is_sidecar, sidecar_stem

TEST_EVENT = "s3:TestEvent"  # sent once when a notification is configured; names no object


class Source(StrEnum):
    """Where events come from."""

    FOLDER = "folder"
    SQS = "sqs"


@dataclass(frozen=True)
class Event:
    """A hint that the object ``key`` of ``bucket`` changed; ``name`` is for the log only."""

    bucket: str
    key: str
    name: str


class MalformedEvent(AudiofuseError):  # noqa: N818 - as in core.errors
    """A message that is no event notification; it is logged, counted and dropped."""


def parse_s3(body: str | bytes) -> list[Event]:
    """Parse an S3 notification as SQS delivers it; a test event holds none.

    Keys arrive URL-encoded, a space as ``+``. Raises ``MalformedEvent``.
    """
    try:
        message = json.loads(body)
        if message.get("Event") == TEST_EVENT:
            return []
        return [_parse_record(record) for record in message["Records"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MalformedEvent(f"no S3 notification ({error!r}): {body[:200]!r}") from error


def _parse_record(record: dict[str, Any]) -> Event:
    bucket, key = record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
    event = Event(str(bucket), unquote_plus(key), str(record["eventName"]))
    event.key.encode()  # a lone surrogate can name no object
    return event


def key_to_sync(changed_key: str) -> str | None:
    """Return what to sync when an object changed: an audio key, or a sidecar's for its audios.

    ``rain.wav.json`` means ``rain.wav``; which sounds ``rain.json`` means only the bucket knows, so
    the worker is asked. ``None`` for objects that are neither sound nor sidecar.
    """
    if is_audio(changed_key):
        return changed_key
    if not is_sidecar(changed_key):
        return None
    stem = sidecar_stem(changed_key)
    return stem if is_audio(stem) else changed_key
