r"""The two lanes: their names in Redis, the order in which they are asked, how much is in them.

Every key begins with the index's name, so that two deployments, or another Celery application, may
share one Redis. ``NAME`` stands for it:

    NAME:live, NAME:backfill            messages that wait, the next one at the right end
    NAME:live\x06\x163 and so on        those with a priority, as kombu names their lists
    NAME:unacked, NAME:unacked_index    what workers hold, by delivery tag: message, and since when
    NAME:held:live, NAME:held:backfill  the same tags by lane, ordered by when they were sent
    NAME:broken                         what stood in a lane and is no message of ours

So do the records that other modules keep beside them: dead letters, deliveries, waiting keys,
followers, outages, the brake, the last comparison.
"""

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from kombu.transport.redis import PRIORITY_STEPS
from kombu.transport.redis import Channel as KombuChannel
from kombu.utils.scheduling import priority_cycle
from redis import Redis

from audiofuse.workers.telemetry.names import Lane

SYNC_TASK = "sync"  # the task that every message of ours is for
SENT = "audiofuse-sent"  # a message's header: when it was sent, a Unix time in seconds
BACKFILL_TURN = 10
"""Of so many messages, or batches, one time backfill goes first. Higher: live waits less; lower:
a backfill beside steady uploads ends sooner."""

UNACKED, UNACKED_INDEX = "unacked", "unacked_index"  # as kombu calls them
BROKEN = "broken"


def key_prefix(index_name: str) -> str:
    """Return what all keys of a deployment's queue begin with."""
    return f"{index_name}:"


def server_time(redis: Redis) -> float:
    """Return Redis's time in seconds since 1970: the machines' own clocks may differ."""
    seconds, microseconds = redis.time()
    return float(seconds + microseconds / 1e6)


def held_key(lane: str) -> str:
    """Return the key, without its prefix, of the tags that workers hold of a lane."""
    return f"held:{lane}"


def lists_of(lane: str) -> list[str]:
    """Return the keys, without their prefix, of a lane's lists: most urgent first, 0 before 9."""
    return [f"{lane}{KombuChannel.sep}{step}" if step else str(lane) for step in PRIORITY_STEPS]


class LiveFirst(priority_cycle):  # type: ignore[misc]
    """The order in which kombu asks the lanes for the next message."""

    def __init__(self) -> None:
        """Begin with live."""
        super().__init__()
        self._turn = 0

    def consume(self, n: int) -> list[str]:
        """Return the names of all lanes, the one to be asked first in front."""
        self._turn = (self._turn + 1) % BACKFILL_TURN
        first = Lane.LIVE if self._turn else Lane.BACKFILL
        return sorted(super().consume(n), key=lambda name: name != first)


@dataclass(frozen=True)
class Backlog:
    """A lane's messages: waiting, and with workers; and the age of the oldest of them, or 0."""

    ready: int
    unacknowledged: int
    oldest_s: float


class Lanes:
    """What waits in the lanes of an index, and what workers hold of it."""

    def __init__(self, redis: Redis, index_name: str) -> None:
        """Look with a client that answers in text."""
        self._redis = redis
        self._prefix = key_prefix(index_name)

    def backlogs(self) -> dict[Lane, Backlog]:
        """Return how much there is to do in each lane.

        Counted at one moment, in which each message is in just one place; what is asked for does
        not grow with what workers hold.
        """
        with self._redis.pipeline() as pipe:
            for lane in Lane:
                for name in lists_of(lane):
                    pipe.llen(self._prefix + name)
                    pipe.lindex(self._prefix + name, -1)  # the next to be taken
                pipe.zcard(self._prefix + held_key(lane))
                pipe.zrange(self._prefix + held_key(lane), 0, 0, withscores=True)
            answers = iter(pipe.execute())
        return {lane: _backlog(lane, answers) for lane in Lane}

    def waiting(self, lane: Lane) -> int:
        """Return how many messages of a lane no worker has taken yet."""
        return self.backlogs()[lane].ready

    def backlog(self, lane: Lane) -> int:
        """Return how many messages of a lane wait or are worked on."""
        each = self.backlogs()[lane]
        return each.ready + each.unacknowledged

    def lengths(self) -> dict[str, int]:
        """Return the messages that wait in each lane, and those handed out, not acknowledged."""
        lanes = self.backlogs()
        lengths = {lane.value: each.ready for lane, each in lanes.items()}
        return lengths | {"unacknowledged": sum(each.unacknowledged for each in lanes.values())}

    def broken(self) -> int:
        """Return how many messages were set aside because they are none of ours."""
        return int(self._redis.llen(self._prefix + BROKEN))

    def keep_hold(self, tags: Iterable[str]) -> None:
        """Say that these messages are still worked on, lest they be delivered again.

        The time is the server's: clocks of workers may differ by more than a redelivery takes.
        """
        names = list(tags)
        if names:
            now = server_time(self._redis)
            self._redis.zadd(self._prefix + UNACKED_INDEX, dict.fromkeys(names, now), xx=True)


def _backlog(lane: Lane, answers: Iterator[Any]) -> Backlog:
    """Read what the server answered about one lane."""
    now = time.time()
    ready, sent = 0, [now]
    for _ in lists_of(lane):
        ready += int(next(answers))
        sent.append(_sent(next(answers), now))
    unacknowledged = int(next(answers))
    sent += [score for _, score in next(answers)]
    return Backlog(ready, unacknowledged, now - min(sent))


def _sent(message: str | None, now: float) -> float:
    """Return when a message was sent; of none, or of one that is none of ours, the present."""
    try:
        return float(json.loads(message or "")["headers"][SENT])
    except (ValueError, TypeError, LookupError):
        return now
