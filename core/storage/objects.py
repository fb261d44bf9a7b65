"""What a single bucket says of its objects: their place, and S3's headers and listings."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import NamedTuple

from audiofuse.core.items import ObjectInfo
from audiofuse.core.query import Filter


class OneBucket:
    """A bucket whose objects are known by their keys alone."""

    bucket: str

    def place(self, key: str) -> tuple[str, str]:
        """Return the bucket in which an object lies, and its key there."""
        return self.bucket, key

    def where(self, prefix: str = "") -> Filter:
        """Return which items are of this bucket, and begin with a prefix."""
        return Filter(bucket=self.bucket, prefix=prefix)

    def parts(self, prefix: str = "") -> Sequence[str]:
        """Return the prefixes by which it is looked through: it is looked through at once."""
        return [prefix]


class Page(NamedTuple):
    """A part of a listing: its objects, without user metadata, and what asks for the next part."""

    objects: list[ObjectInfo]
    token: str | None


def object_info(
    key: str, etag: str, size: int, modified: datetime, metadata: Mapping[str, str] | None = None
) -> ObjectInfo:
    """Return what is known of an object, by the ETag in its quotes and the user's own headers."""
    return ObjectInfo(
        key=key,
        etag=etag.strip('"'),
        size=size,
        # In whole seconds: some servers list fractions of a second that no header has.
        modified_ms=int(modified.timestamp()) * 1000,
        user_metadata={k.lower(): _decoded(v) for k, v in (metadata or {}).items()},
    )


def _decoded(value: str) -> str:
    """Undo RFC 2047, in which S3 returns user metadata that is not ASCII."""
    if "=?" not in value:
        return value
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, ValueError):
        return value
