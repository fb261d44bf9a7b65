"""Events: what a notification says, in the dialects in which buckets speak.

    {"Records": [record, ...]}                       S3, Ceph, the webhooks of MinIO and RustFS
    [{"Event": [record, ...]}]                       MinIO's Redis list
    {"Type": "Notification", "Message": "{...}"}     any of them through SNS
    {"detail-type": "Object Created", "detail": {}}  S3 through EventBridge
    {"event_type": "create", "key": "/buckets/..."}  SeaweedFS

A notification is only a hint, so what is dubious is read generously: a key too many is looked at
and not found. Nothing is read but bucket, key and name; order and sequence numbers least of all.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from audiofuse.core.errors import AudiofuseError
from audiofuse.core.items import is_audio, is_sidecar, sidecar_stem
from audiofuse.workers.telemetry.names import Flaw

TEST_EVENT = "s3:TestEvent"  # sent once when a notification is configured; names no object
MAX_MESSAGE_BYTES = 4 * 1024**2  # SQS allows 1 MiB; SeaweedFS lists every chunk of a file
MAX_KEY_BYTES = 1024  # S3's own limit
DETAIL_CHARACTERS = 200
FILER_BUCKETS = "buckets"  # the folder in which SeaweedFS keeps its buckets
FILER_VERSIONS = ".versions"  # an object's versions lie in a folder that is named like it

URL_ENCODED = ("aws:s3", "minio:s3", "rustfs:s3")
NOT_ENCODED = ("ceph:s3",)
UNCHANGING = (  # how the names of events begin after which each sound is what it was
    "ObjectAccessed:",  # the worker's own reading, too
    "ObjectAcl:",
    "ObjectTagging:",
    "ObjectCreated:PutTagging",
    "ObjectCreated:DeleteTagging",
    "ObjectCreated:PutRetention",
    "ObjectCreated:PutLegalHold",
    "Object ACL ",
    "Object Access Tier ",
    "Object Storage Class ",
    "Object Tags ",
)


@dataclass(frozen=True)
class Event:
    """A hint that the object ``key`` of ``bucket`` changed; ``name`` says what happened to it."""

    bucket: str
    key: str
    name: str

    @property
    def changes_sound(self) -> bool:
        """Whether the sound, its words or its being there may have changed."""
        return not self.name.removeprefix("s3:").startswith(UNCHANGING)


class Dropped(AudiofuseError):  # noqa: N818 - as in audiofuse.core.errors
    """What came in is no event of ours; ``flaw`` classifies, the message says it in words."""

    def __init__(self, flaw: Flaw, detail: str) -> None:
        super().__init__(f"{flaw}: {detail}")
        self.flaw = flaw


Reader = Callable[[Any], Iterable[Event]]

UNREADABLE = (ValueError, RecursionError)


def parse(body: str | bytes) -> list[Event | Dropped]:
    """Return the events of a message, in their order, and beside them what had to be dropped.

    Never raises: whatever else a queue holds comes back as ``Dropped``.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        return [Dropped(Flaw.TOO_LARGE, f"a message of more than {MAX_MESSAGE_BYTES} bytes")]
    try:
        reader, records = _dialect(json.loads(body))
    except UNREADABLE as error:
        return [_malformed(error, body)]
    return [each for record in records for each in _read(reader, record, body)]


def _dialect(message: object) -> tuple[Reader, list[Any]]:
    match message:
        case {"Records": [*records]}:
            return _s3, records
        case {"Event": str(name)} if name == TEST_EVENT:
            return _s3, []
        case {"Type": "Notification", "Message": str(text)}:
            return _dialect(json.loads(text))
        case {"detail-type": str()}:
            return _eventbridge, [message]
        case {"event_type": str()}:
            return _filer, [message]
        case [*entries]:
            return _s3, [record for entry in entries for record in _listed(entry)]
    raise ValueError("no notification in any known dialect")


def _listed(entry: object) -> list[Any]:
    match entry:
        case {"Event": [*records]}:
            return records
    raise ValueError("an entry of MinIO's list without events")


def _read(reader: Reader, record: object, body: str | bytes) -> Iterator[Event | Dropped]:
    """Read one record; what is wrong with it does not take its neighbours along."""
    try:
        for event in reader(record):
            if wrong := _wrong_with(event.key):
                yield Dropped(Flaw.BAD_KEY, f"{wrong}: {event.key[:DETAIL_CHARACTERS]!r}")
            else:
                yield event
    except UNREADABLE as error:
        yield _malformed(error, body)


def _malformed(error: Exception, body: str | bytes) -> Dropped:
    why = f"{type(error).__name__}: {error}"[:DETAIL_CHARACTERS]
    return Dropped(Flaw.MALFORMED, f"{why}, in {body[:DETAIL_CHARACTERS]!r}")


def _s3(record: Any) -> Iterator[Event]:
    match record:
        case {"data": {"s3": _} as wrapped}:  # by some releases of RustFS
            yield from _s3(wrapped)
        case {
            "eventName": str(name),
            "s3": {"bucket": {"name": str(bucket)}, "object": {"key": str(key)}},
        }:
            for reading in _readings(key, record.get("eventSource")):
                yield Event(bucket, reading, name)
        case _:
            raise ValueError("a record without name, bucket or key")


def _readings(key: str, source: object) -> Iterable[str]:
    """Return what the key may be. Of an unknown source both readings: only the bucket can tell."""
    if source in NOT_ENCODED:
        return [key]
    decoded = unquote_plus(key, errors="surrogateescape")  # no UTF-8: refused as a bad key
    return [decoded] if source in URL_ENCODED else dict.fromkeys([decoded, key])


def _eventbridge(message: object) -> Iterator[Event]:
    match message:
        case {
            "detail-type": str(name),
            "detail": {"bucket": {"name": str(bucket)}, "object": {"key": str(key)}},
        }:
            yield Event(bucket, key, name)
        case _:
            raise ValueError("an EventBridge event without bucket or key")


def _filer(message: object) -> Iterator[Event]:
    """Read an event of files: a rename tells of two, and what is in no bucket of none."""
    match message:
        case {
            "event_type": str(name),
            "key": str(path),
            "message": {"new_parent_path": str(parent), "new_entry": {"name": str(entry)}},
        }:
            paths = dict.fromkeys([path, f"{parent}/{entry}"])
        case {"event_type": str(name), "key": str(path)}:
            paths = {path: None}
        case _:
            raise ValueError("a SeaweedFS event without key")
    for each in paths:
        match each.split("/", 3):
            case ["", folder, bucket, key] if folder == FILER_BUCKETS:
                for reading in dict.fromkeys([key, key.partition(FILER_VERSIONS)[0]]):
                    yield Event(bucket, reading, name)


def _wrong_with(key: str) -> str:
    """Return why the key names no object that S3 allows; empty if it may."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "a key that is no UTF-8"
    if not 0 < size <= MAX_KEY_BYTES:
        return f"a key of {size} bytes"
    if "\0" in key:
        return "a key with a NUL"
    return "a key that leaves its bucket" if _leaves(key) else ""


def _leaves(key: str) -> bool:
    depth = 0
    for part in key.split("/")[:-1]:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


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
