"""Which process follows which rollout document, as an operator sees it."""

import math
import time
from collections.abc import Callable

import pytest
from redis import Redis, RedisError

from audiofuse.core.bundles.document import LEASE_S, Rollout
from audiofuse.core.errors import Unavailable
from audiofuse.workers.queue import followers as module
from audiofuse.workers.queue.followers import Follower, Followers, joined


class Document:
    """A watch of a document that the test writes."""

    def __init__(self) -> None:
        self.tag: str | None = "tag-1"
        self.read_at = -math.inf
        self.away = False
        self.after_reading: Callable[[], None] = lambda: None

    def look(self) -> Rollout:
        """Read the document, then let happen what the test says."""
        if not self.away:
            self.read_at = time.monotonic()
        read = Rollout(live=self.tag or "none")
        act, self.after_reading = self.after_reading, lambda: None
        act()
        return read


def _follower(document: Document, followers: Followers) -> Follower:
    return Follower(document, followers, "worker a:1")  # type: ignore[arg-type]


def test_who_follows_another_document_is_behind(redis: Redis) -> None:
    """Those that follow the very document, and those of other buckets, are not waited for."""
    followers = Followers(redis, "audiofuse")
    assert followers.behind("tag-2") == []
    followers.follow("worker b:1", "tag-1")
    followers.follow("worker a:1", None)
    followers.follow("search a:1", "tag-2")
    Followers(redis, "other").follow("worker c:1", "tag-1")
    assert followers.behind("tag-2") == ["worker a:1", "worker b:1"]
    assert followers.behind(None) == ["search a:1", "worker b:1"]
    followers.leave("worker b:1")
    assert followers.behind("tag-2") == ["worker a:1"]


def test_processes_say_on_what_they_compute(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says nothing more, or ends, is not told of."""
    followers = Followers(redis, "audiofuse")
    Follower(
        Document(),  # type: ignore[arg-type]
        followers,
        "worker a:1",
        lambda: joined(["cuda by torch", "cpu by onnxruntime", "cuda by torch"]),
    ).look()
    followers.follow("search a:1", None)
    followers.follow("worker b:1", None, "cuda by torch")
    followers.leave("worker b:1")
    assert followers.devices() == {
        "search a:1": "", "worker a:1": "cpu by onnxruntime, cuda by torch",
    }  # fmt: skip
    monkeypatch.setattr(module, "GONE_S", -1.0)
    assert followers.devices() == {}


def test_who_says_nothing_for_a_while_is_gone(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was killed holds nobody up for long, and is forgotten in the end."""
    followers = Followers(redis, "audiofuse")
    followers.follow("worker a:1", "tag-1")
    monkeypatch.setattr(module, "GONE_S", -1.0)  # what is said is rounded, perhaps up
    assert followers.behind("tag-2") == []
    monkeypatch.setattr(module, "FORGOTTEN_S", -1.0)
    assert followers.behind("tag-2") == []
    assert redis.keys("audiofuse:followers*") == []


def test_a_process_is_gone_only_after_it_settles_nothing_any_more() -> None:
    """The operator waits for longer than a worker may act on what it read."""
    assert module.GONE_S > LEASE_S


def test_a_document_is_announced_before_it_is_followed(redis: Redis) -> None:
    """One that was replaced while it was announced is never followed: it is read once more."""
    document, followers = Document(), Followers(redis, "audiofuse")
    follower = _follower(document, followers)

    def replace() -> None:
        document.tag = "tag-2"

    document.after_reading = replace
    rollout = follower.look()
    assert rollout
    assert rollout.live == "tag-2"
    assert followers.behind("tag-2") == []


def test_what_was_not_read_for_too_long_is_not_acted_on(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document is a lease: it ends when the registry is away, and begins anew after that."""
    monkeypatch.setattr(module, "LEASE_S", 0.05)
    document, followers = Document(), Followers(redis, "audiofuse")
    follower = _follower(document, followers)
    with pytest.raises(Unavailable, match="could not be read"):
        follower.check()
    document.away = True
    follower.look()
    time.sleep(0.1)
    with pytest.raises(Unavailable, match="could not be read"):
        follower.check()
    assert followers.behind("tag-2") == ["worker a:1"]  # it lives, and is named
    document.away = False
    monkeypatch.setattr(module, "LEASE_S", LEASE_S)
    follower.look()
    follower.check()


def test_a_document_that_cannot_be_announced_is_not_followed(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis is away the process stays with the document that the operator knows it has."""
    document, followers = Document(), Followers(redis, "audiofuse")
    follower = _follower(document, followers)
    before = follower.look()

    def away(*_: object) -> None:
        raise RedisError("away")

    with monkeypatch.context() as patch:
        patch.setattr(followers, "follow", away)
        document.tag = "tag-2"
        assert follower.look() == before
        monkeypatch.setattr(module, "LEASE_S", -1.0)
        with pytest.raises(Unavailable):
            follower.check()
    after = follower.look()
    assert after
    assert after.live == "tag-2"
