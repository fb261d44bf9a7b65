"""Every error the product raises on purpose. The class decides the fate of the work in hand.

    AudiofuseError
    ├── Rejected            the object itself is at fault: dead letter, never retried by itself
    ├── Unavailable         something we depend on is down, or refuses whatever it is asked:
    │                       try again later, with back-off; its text says what to do about it
    ├── ObjectChanged       the object is no longer the one looked at: look again, at once
    ├── ConfigurationError  the operator must change something: refuse to start, exit code 2
    │   └── BundleError     an encoder bundle is missing, damaged or of another format
    └── QueryError          a question that cannot be answered as asked, e.g. one without words
        └── NotFound        it is about an item or a version that is not there

Anything else that escapes is a bug: logged with its traceback, delivered at most three times.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why an object was rejected; a closed set, so that it can label metrics."""

    EMPTY = "empty"
    NOT_AUDIO = "not_audio"
    DAMAGED = "damaged"
    SILENT = "silent"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    TOO_LARGE = "too_large"
    NOT_FINITE = "not_finite"
    HUNG = "hung"  # its decoding made no progress and was killed
    CRASHED = "crashed"  # its decoding took its process down, or more memory than it may
    NO_MEMORY = "no_memory"  # it does not fit the device, not even alone
    UNREADABLE = "unreadable"  # an archive, a policy or its own key keeps its bytes from us
    BAD_SIDECAR = "bad_sidecar"
    BUG = "bug"


class AudiofuseError(Exception):
    """Base of every error raised on purpose."""


class Rejected(AudiofuseError):  # noqa: N818 - the noun of the domain, not one more "Error"
    """The object cannot be indexed as it is; ``reason`` classifies, ``detail`` says it in words.

    ``etag`` is the state of the object that was judged, where that is known.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.etag = ""


class Unavailable(AudiofuseError):  # noqa: N818 - as above
    """Store, broker or index cannot answer now; the same work may succeed later."""


class ObjectChanged(AudiofuseError):  # noqa: N818 - as above
    """The object was replaced or deleted while it was being worked on."""


class ConfigurationError(AudiofuseError):
    """Settings or surroundings are wrong; nothing starts until the operator mends them."""


class BundleError(ConfigurationError):
    """An encoder bundle cannot be trusted or read."""


class QueryError(AudiofuseError):
    """The query is empty, too long or otherwise no question."""


class NotFound(QueryError):  # noqa: N818 - as above
    """The item or version that is asked for is not there."""
