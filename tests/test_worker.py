"""The worker's task: an error's class decides the message's fate."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery
from redis import Redis

from core.bundle import save_bundle
from core.encoder import Encoder
from core.errors import ConfigurationError, Reason, Rejected, Unavailable
from core.index import Index, connect_embedded
from core.items import ObjectInfo
from core.settings import Settings
from workers.app import MAX_DELIVERIES, SyncTask, build_syncer, create_app
from workers.broker import SYNC_TASK, Dispatcher, Lane, create_celery, queue_lengths
from workers.dead_letters import DeadLetters, Deliveries
from workers.sync import Outcome, Synced

KEY = "owl.wav"


class Script:
    """A syncer that does what it is told, one act for each call: the fault to inject."""

    def __init__(self, *acts: Synced | Exception) -> None:
        self.acts = list(acts)

    @property
    def store(self) -> "Script":
        """Stand in for the bucket too."""
        return self

    def head(self, key: str) -> ObjectInfo:
        """Know one state of the object."""
        return ObjectInfo(key, "state-1", size=1, modified_ms=0)

    def sync(self, key: str) -> Synced:
        """Return or raise the next act."""
        assert key == KEY
        act = self.acts.pop(0)
        if isinstance(act, Exception):
            raise act
        return act


@pytest.fixture
def run(redis: Redis, valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    """Return a function that runs the task on one key against a script."""
    monkeypatch.setattr("workers.app.PAUSE_S", 0.0)
    app: Celery = create_app(Settings(broker_url=valkey_url))
    task: SyncTask = app.tasks[SYNC_TASK]
    task.dead_letters, task.deliveries = DeadLetters(redis), Deliveries(redis)

    def run_script(*acts: Synced | Exception) -> Script:
        task.syncer = Script(*acts)  # type: ignore[assignment]
        task.apply(kwargs={"key": KEY})
        return task.syncer  # type: ignore[return-value]

    return run_script


def test_a_rejection_is_a_dead_letter_at_once(run: Callable[..., Script], redis: Redis) -> None:
    """Rejected is recorded with its reason and never tried again."""
    run(Rejected(Reason.SILENT, "all 2.0 s are silent"))
    letter = DeadLetters(redis).get([KEY])[KEY]
    assert (letter.reason, letter.detail) == (Reason.SILENT, "all 2.0 s are silent")


def test_unavailable_is_tried_until_it_works(run: Callable[..., Script], redis: Redis) -> None:
    """However often something is away, the message is neither lost nor held against the object."""
    away = [Unavailable("the bucket is away")] * (MAX_DELIVERIES + 2)
    assert run(*away, Synced(Outcome.CREATED)).acts == []
    assert DeadLetters(redis).count() == 0


def test_a_bug_is_tried_three_times(run: Callable[..., Script], redis: Redis) -> None:
    """An unexpected exception is delivered three times, then dead-lettered with its words."""
    script = run(*[KeyError("oops")] * MAX_DELIVERIES, Synced(Outcome.CREATED))
    assert len(script.acts) == 1
    letter = DeadLetters(redis).get([KEY])[KEY]
    assert (letter.reason, letter.detail) == (Reason.BUG, "KeyError: 'oops'")
    assert letter.etag == "state-1"  # so that reconcile leaves this state alone


def test_an_object_that_kills_its_worker_is_given_up(
    run: Callable[..., Script], redis: Redis
) -> None:
    """Deliveries are counted before the work: after three that never ended it is not tried."""
    for _ in range(MAX_DELIVERIES):
        Deliveries(redis).begin(KEY)  # as by a worker that died at once
    script = run(Synced(Outcome.CREATED))
    assert len(script.acts) == 1
    assert DeadLetters(redis).get([KEY])[KEY].reason is Reason.BUG
    assert run(Synced(Outcome.CREATED)).acts == []  # replayed later, it has its chances again


def test_a_good_outcome_clears_old_letters(run: Callable[..., Script], redis: Redis) -> None:
    """Once an item is indexed nothing is held against it or its sidecars."""
    letters = DeadLetters(redis)
    for key in (KEY, KEY + ".json", "owl.json", "other.wav"):
        letters.add(key, Rejected(Reason.NOT_AUDIO, "no sound"))
    run(Synced(Outcome.UPDATED))
    assert [letter.key for letter in letters.latest(10)] == ["other.wav"]


def test_a_broken_sidecar_is_reported(run: Callable[..., Script], redis: Redis) -> None:
    """What is wrong with a sidecar is a letter of its own, kept while nothing changes."""
    problem = Rejected(Reason.BAD_SIDECAR, "not JSON")
    run(Synced(Outcome.CREATED, {KEY + ".json": problem}))
    run(Synced(Outcome.UNCHANGED))
    assert [letter.key for letter in DeadLetters(redis).latest(10)] == [KEY + ".json"]


def test_a_worker_for_another_encoder_does_not_start(
    tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker never fills an index that nobody asks: its encoder must be the live one's."""
    index = Index(connect_embedded(), "audiofuse")
    index.create("other-111111", tiny_encoder)
    monkeypatch.setattr("workers.app.open_index", lambda _: index)
    bundle = save_bundle(tiny_encoder, tmp_path, "tiny", "")
    with pytest.raises(ConfigurationError, match="other-111111"):
        build_syncer(Settings(encoder=bundle, bucket=str(tmp_path)))


@pytest.mark.parametrize("command", ["workers.cli worker", "celery -A workers.app worker"])
def test_a_misconfigured_worker_exits_with_one_clear_error(command: str) -> None:
    """Without an encoder the worker ends before it takes a message, exit code 2, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "the worker does not start: no encoder is set" in done.stderr
    assert "Traceback" not in done.stderr


def test_messages_wait_in_their_lane(redis: Redis, valkey_url: str) -> None:
    """A key handed over is one JSON message in the queue of its lane."""
    dispatcher = Dispatcher(create_celery(Settings(broker_url=valkey_url)))
    dispatcher.sync(KEY, Lane.LIVE)
    dispatcher.sync("other.wav", Lane.BACKFILL)
    dispatcher.sync("third.wav", Lane.BACKFILL)
    assert queue_lengths(redis) == {"live": 1, "backfill": 2, "unacknowledged": 0}
    assert b"application/json" in str(redis.lrange("live", 0, 0)).encode()


def test_handing_over_fails_loudly() -> None:
    """When the broker is away the caller learns it, so that it keeps the event."""
    app = create_celery(Settings(broker_url="redis://127.0.0.1:1/0"))
    app.conf.task_publish_retry = False
    with pytest.raises(Unavailable, match="broker"):
        Dispatcher(app).sync(KEY, Lane.LIVE)
