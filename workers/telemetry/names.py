"""Names that the queue, its processes and their metrics share."""

from enum import StrEnum


class Lane(StrEnum):
    """The two queues; live messages always go first."""

    LIVE = "live"
    BACKFILL = "backfill"


class Source(StrEnum):
    """Where events come from."""

    FOLDER = "folder"
    SQS = "sqs"
    REDIS = "redis"
    WEBHOOK = "webhook"


class Flaw(StrEnum):
    """Why a message, or an event in it, was dropped; a closed set, so that it can label metrics."""

    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    BAD_KEY = "bad_key"
    FOREIGN_BUCKET = "foreign_bucket"
    UNAUTHENTICATED = "unauthenticated"


class Outcome(StrEnum):
    """What became of a message, or of the sync that it asked for."""

    CREATED = "created"
    UPDATED = "updated"
    REFUSED = "re-fused"
    UNCHANGED = "unchanged"
    REMOVED = "removed"
    ABSENT = "absent"
    LATER = "later"  # another message sees to it
    REJECTED = "rejected"  # a dead letter
