"""Which process follows which rollout document, said in Redis: what the operator waits for.

    worker, query service ── follow(name, tag), every second ──> Redis <── behind(tag) ── operator

The document (``core/bundles/document.py``) is a lease. A worker that could not read it for
``LEASE_S`` does not know what others have decided meanwhile, and settles nothing. Whoever writes a
new one waits until nobody is ``behind`` it: then every change of the bucket goes where it says.

A process says which document it follows before it does so, and looks once more: if the document
was replaced in between, either the second look or whoever replaced it sees that.
"""

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence

from redis import Redis, RedisError

from audiofuse.core.bundles.document import LEASE_S, Rollout
from audiofuse.core.bundles.registry import Watch
from audiofuse.core.errors import Unavailable
from audiofuse.workers.queue.lanes import key_prefix, server_time

log = logging.getLogger(__name__)

# Seconds after which a process that says nothing is taken to be gone. Raising it makes operators
# wait longer for one that was killed; it must exceed LEASE_S, after which a worker settles nothing.
GONE_S = 30.0
NEVER = "never"  # no document has this tag
FORGOTTEN_S = 24 * 3600.0  # seconds after which its entry in Redis is removed


def follower_name(process: str) -> str:
    """Return a name that tells an operator which process of the fleet this one is."""
    return f"{process} {socket.gethostname()}:{os.getpid()}"


def joined(devices: Iterable[str]) -> str:
    """Return on what a process computes, each once."""
    return ", ".join(sorted(set(devices)))


class Followers:
    """The processes that follow the document of one index. Raises what Redis does."""

    def __init__(self, redis: Redis, index_name: str) -> None:
        """Keep them in ``redis``, for the index of this name."""
        self._redis = redis
        # name -> when it said so (Redis's clock), tag
        self._tags = f"{key_prefix(index_name)}followers"
        self._devices = f"{key_prefix(index_name)}followers:devices"  # name -> what computes

    def follow(self, name: str, tag: str | None, runs_on: str = "") -> None:
        """Say that the process ``name`` follows the document with ``tag``; ``None``: there is none.

        It is to be repeated every second or so: after ``GONE_S`` the process is taken to be gone.
        ``runs_on`` tells people on what its encoders run.
        """
        said = f"{server_time(self._redis):.3f} {tag or ''}"
        with self._redis.pipeline() as pipe:
            pipe.hset(self._tags, name, said)
            pipe.hset(self._devices, name, runs_on)
            pipe.execute()

    def leave(self, name: str) -> None:
        """Say that the process ``name`` ends."""
        self._forget([name])

    def _forget(self, names: Sequence[str]) -> None:
        for record in (self._tags, self._devices):
            self._redis.hdel(record, *names)

    def behind(self, tag: str | None) -> list[str]:
        """Return the names of the processes that do not follow the document with ``tag``."""
        return sorted(name for name, followed in self._alive().items() if followed != (tag or ""))

    def devices(self) -> dict[str, str]:
        """Return on what the encoders of each process run; empty while it has none."""
        devices: dict[str, str] = self._redis.hgetall(self._devices)  # type: ignore[assignment]
        return {name: devices.get(name, "") for name in sorted(self._alive())}

    def _alive(self) -> dict[str, str]:
        """Return which document each process follows that said so lately; forget old ones."""
        now = server_time(self._redis)
        entries: dict[str, str] = self._redis.hgetall(self._tags)  # type: ignore[assignment]
        said = {name: entry.split(" ", 1) for name, entry in entries.items()}
        ages = {name: now - float(at) for name, (at, _) in said.items()}
        if forgotten := [name for name, age_s in ages.items() if age_s > FORGOTTEN_S]:
            self._forget(forgotten)
        return {name: said[name][1] for name, age_s in ages.items() if age_s < GONE_S}


class Follower:
    """The document as one process follows it, which says so to the operator."""

    def __init__(
        self, watch: Watch, followers: Followers, name: str, runs_on: Callable[[], str] = str
    ) -> None:
        """Follow the document that is watched, as the process ``name``.

        ``runs_on`` tells on what its encoders run.
        """
        self._watch = watch
        self._followers = followers
        self._name = name
        self._runs_on = runs_on
        self._said: str | None = NEVER  # the tag that was last announced
        self._followed: str | None = NEVER  # the tag of what is followed
        self._rollout: Rollout | None = None
        self._read_at = -math.inf  # a monotonic time
        self._left = False

    def look(self) -> Rollout | None:
        """Return the document that is followed from here on; ``None`` if there never was one.

        While the registry or Redis is away that is the one before. Raises ``Unavailable`` if no
        document could be followed yet.
        """
        if self._left:
            return self._rollout
        try:
            rollout = self._announced()
        except RedisError as error:
            if self._followed is NEVER:
                raise Unavailable(f"the broker does not answer: {error}") from error
            if self._said != self._followed:
                self._read_at = -math.inf  # nobody waits any more for who follows the one before
            log.warning("nobody can be told which rollout document is followed: %s", error)
        else:
            self._rollout, self._followed = rollout, self._said
            self._read_at = self._watch.read_at
        return self._rollout

    def _announced(self) -> Rollout | None:
        """Read the document until what was read was announced before."""
        while True:
            rollout, before = self._watch.look(), self._said
            self._followers.follow(self._name, self._watch.tag, self._runs_on())
            self._said = self._watch.tag
            if self._said == before:
                return rollout

    def leave(self) -> None:
        """Say that this process ends: it follows nothing any more, and nobody waits for it."""
        self._left = True
        try:
            self._followers.leave(self._name)
        except RedisError as error:
            log.warning("the broker does not answer: %s", error)

    def check(self) -> None:
        """Raise ``Unavailable`` if the document could not be read, or followed, for too long."""
        if time.monotonic() - self._read_at > LEASE_S:
            raise Unavailable(
                f"the rollout's document could not be read for {LEASE_S:.0f} s: what is live may "
                "have changed"
            )
