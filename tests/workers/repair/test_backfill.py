"""Backfill, reconcile and retry: a real deployment of a bucket behind S3 that sends no events."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from bundles import saved_bundle
from redis import Redis
from typer.testing import CliRunner

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import AudiofuseError
from audiofuse.core.index.index import open_index
from audiofuse.core.retrying import BackOff
from audiofuse.core.settings import Settings, environment
from audiofuse.core.storage.boto import s3_client
from audiofuse.workers.commands.main import cli
from audiofuse.workers.deployment.local import LocalDeployment
from audiofuse.workers.deployment.status import read_status
from audiofuse.workers.queue.broker import (
    Dispatcher,
    connect_redis,
    create_celery,
    open_lanes,
)
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.repair import backfill
from audiofuse.workers.repair.feed import LaneFeed
from audiofuse.workers.telemetry.names import Lane

Eventually = Callable[..., Any]
SOUND = Path(__file__).parents[3] / "examples" / "sounds" / "animals" / "owl.wav"


class World:
    """A running deployment and its bucket, of which nobody tells it anything."""

    def __init__(self, deployment: LocalDeployment) -> None:
        self.deployment = deployment
        self.settings = deployment.settings
        self.bucket = self.settings.bucket.removeprefix("s3://")
        self.redis = connect_redis(self.settings)
        self.lanes = open_lanes(self.settings)
        self.letters = DeadLetters(self.redis, self.settings.index_name)
        self.dispatcher = Dispatcher(create_celery(self.settings))
        self._s3 = s3_client(self.settings)
        self._index = open_index(self.settings)

    def put(self, *keys: str, content: bytes | None = None) -> None:
        """Write objects: sounds, if nothing else is asked for."""
        for key in keys:
            body = content or SOUND.read_bytes()
            self._s3.put_object(Bucket=self.bucket, Key=key, Body=body)

    def points(self) -> set[str]:
        """Return the keys that are indexed."""
        live = self._index.live()
        return {p.payload["key"] for p in self._index.scroll(live, ["key"])} if live else set()

    def signal_worker(self, number: int) -> None:
        """Stop the worker for a while, or let it go on."""
        worker = next(part for part in self.deployment._parts if part.name == "worker")
        worker.process.send_signal(number)


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, aws_url: str, tiny_encoder: Encoder
) -> Iterator[World]:
    """Return a deployment for a bucket in which a sound lay before; no event tells of it."""
    root = tmp_path_factory.mktemp("deployment")
    settings = Settings(
        home=root / "home", bucket=f"s3://sounds-{uuid4().hex[:8]}", s3_endpoint_url=aws_url,
        s3_access_key_id="test", s3_secret_access_key="test", decoders=2,
        encoder=saved_bundle(tiny_encoder, root, "tiny", ""),
    )  # fmt: skip
    sqs, bucket = s3_client(settings, "sqs"), settings.bucket.removeprefix("s3://")
    url = sqs.create_queue(QueueName=bucket)["QueueUrl"]
    s3 = s3_client(settings)
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="before.wav", Body=SOUND.read_bytes())
    with LocalDeployment(settings.model_copy(update={"sqs_queue_url": url})) as deployment:
        yield World(deployment)


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return what runs an ``audiofuse`` command on the deployment and reads its JSON."""
    for name, value in environment(world.settings).items():
        monkeypatch.setenv(name, value)

    def command(*arguments: str, **options: Any) -> Any:
        done = CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False, **options)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return command


@pytest.mark.timeout(180)
def test_a_deployment_reconciles_when_it_starts(world: World, eventually: Eventually) -> None:
    """What lay in an S3 bucket before is indexed without any event; the status tells of the run."""
    eventually(lambda: world.points() == {"before.wav"})
    found = eventually(lambda: read_status(world.settings).reconciled).found
    assert (found["missing"], found["agreed"]) == (1, 0)


def test_a_bucket_is_backfilled_to_the_end(world: World, run: Callable[..., Any]) -> None:
    """Backfill returns when all is done; what is done already is not done again, unless asked."""
    keys = {f"fill/{number}.wav" for number in range(20)}
    world.put(*keys)
    before = read_status(world.settings).reconciled
    assert run("reconcile", "--dry-run")["missing"] == 20
    assert read_status(world.settings).reconciled == before
    assert run("backfill", "--prefix", "fill/1")["queued"] == 11
    assert {key for key in keys if key.startswith("fill/1")} <= world.points()
    told = run("backfill")
    assert (told["total"], told["queued"]) == (9, 9)
    assert keys <= world.points()
    assert world.lanes.lengths()["backfill"] == 0
    recorded = read_status(world.settings).reconciled
    assert recorded
    assert recorded.found == told["found"]
    assert run("backfill")["queued"] == 0
    assert run("backfill", "--all", "--prefix", "fill/")["queued"] == 20


def test_an_upload_does_not_wait_for_the_backlog(
    world: World, run: Callable[..., Any], eventually: Eventually
) -> None:
    """A live message overtakes those on the backfill lane."""
    keys = [f"backlog/{number}.wav" for number in range(150)]
    world.put(*keys)
    run("backfill", "--no-wait")
    world.put("live.wav")
    waiting = world.lanes.backlog(Lane.BACKFILL)
    world.dispatcher.sync("live.wav", Lane.LIVE)
    eventually(lambda: "live.wav" in world.points())
    assert world.lanes.backlog(Lane.BACKFILL) > waiting / 3 > 30
    run("backfill")
    assert set(keys) <= world.points()


def test_ctrl_c_stops_the_watching_not_the_work(
    world: World, run: Callable[..., Any], eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is queued is worked on; if not all was, that is said, and is a failure."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    keys = {f"interrupted/{number}.wav" for number in range(5)}
    world.put(*keys)
    world.signal_worker(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(LaneFeed, "queue", interrupt)
        with pytest.raises(AudiofuseError, match="run it again"):
            run("backfill")
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", interrupt)
        assert run("backfill")["queued"] == 5
    world.signal_worker(signal.SIGCONT)
    eventually(lambda: keys <= world.points())


def test_losing_redis_loses_no_object(world: World, run: Callable[..., Any]) -> None:
    """After FLUSHALL, with messages that nobody had worked on, backfill finds all again."""
    keys = {f"lost/{number}.wav" for number in range(20)}
    world.put(*keys)
    world.signal_worker(signal.SIGSTOP)
    run("backfill", "--no-wait")
    assert world.lanes.backlog(Lane.BACKFILL) >= 19  # one may be on its way to the worker
    world.redis.flushall()
    world.signal_worker(signal.SIGCONT)
    assert not keys <= world.points()
    run("backfill")
    assert keys <= world.points()


def test_a_mended_object_is_retried(
    world: World, run: Callable[..., Any], eventually: Eventually
) -> None:
    """A retry without a change adds to the count; once the object is mended its letter goes."""

    def letter() -> Any:
        return world.letters.get(["bad.wav"]).get("bad.wav")

    world.put("bad.wav", content=b"no sound")
    run("backfill")
    first = letter()
    assert (first.reason, first.count) == ("not_audio", 1)
    assert first.encoder.startswith("tiny-")
    assert run("reconcile")["rejected"] == 1
    assert read_status(world.settings).reasons == {"not_audio": 1}
    assert run("dead", "retry", "--reason", "silent")["queued"] == 0
    assert run("dead", "retry", "bad.wav")["queued"] == 1
    eventually(lambda: letter().count == 2)
    world.put("bad.wav")
    assert run("dead", "retry")["queued"] == 1
    eventually(lambda: "bad.wav" in world.points())
    eventually(lambda: letter() is None)


def test_a_new_upload_clears_the_letter(
    world: World, run: Callable[..., Any], eventually: Eventually
) -> None:
    """Sound and sidecar that are replaced by good ones have no letters any more."""
    world.put("two.wav.json", content=b"no json")
    world.put("two.wav")
    run("backfill")
    assert set(world.letters.keys()) == {"two.wav.json"}
    assert run("dead", "retry")["queued"] == 1  # a sidecar's letter means its sound
    world.put("two.wav.json", content=b'{"title": "Owl"}')
    world.dispatcher.sync("two.wav", Lane.LIVE)
    eventually(lambda: world.letters.count() == 0)


def test_a_schedule_goes_on_when_something_is_away(
    redis: Redis, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the index is away nothing ends and nothing is queued: it is tried again."""
    (tmp_path / "bucket").mkdir()
    settings = Settings(
        bucket=str(tmp_path / "bucket"), broker_url=valkey_url, qdrant_url="http://127.0.0.1:1"
    )
    failures: list[None] = []

    def count() -> None:
        failures.append(None)
        if len(failures) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(backfill, "RECONCILE_AGAIN", BackOff(0.01, 0.01))
    monkeypatch.setattr(backfill.RECONCILE_FAILURES, "inc", count)
    with pytest.raises(KeyboardInterrupt):
        backfill.keep_reconciled(settings, "", 3600)
    assert redis.keys() == []
