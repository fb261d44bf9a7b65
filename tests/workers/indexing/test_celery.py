"""The worker as a citizen of Celery: what it tells, and what it may be told, over the broker."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
from bundles import saved_bundle
from celery import Celery
from devices import device_in_threads
from fastapi import FastAPI
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import ResponseError

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.index import embedded
from audiofuse.core.index.index import connect_embedded, open_index
from audiofuse.core.settings import PREFIX, Settings, environment
from audiofuse.workers.deployment.local import Part, free_port
from audiofuse.workers.indexing import app as celery_app
from audiofuse.workers.queue.broker import Dispatcher, create_celery, open_lanes
from audiofuse.workers.queue.consumer import Consumer
from audiofuse.workers.telemetry.names import Lane

Eventually = Callable[..., Any]
OWL = Path(__file__).parents[3] / "examples" / "sounds" / "animals" / "owl.wav"
IN_HAND = 20
BESIDE_LIVE = 8  # of the backfill; the tests' batches hold no more
SCRIPT = """
import os, sys, time
from celery import signals
from audiofuse.workers.indexing import versions, worker

worker.LET_GO_S = 0.5
sync = versions.MultiVersionSyncer.sync

def sync_through_the_gate(self, key):
    while os.path.exists({gate!r}):
        time.sleep(0.02)
    return sync(self, key)

versions.MultiVersionSyncer.sync = sync_through_the_gate

def say(*words):
    os.write(2, (" ".join(words) + "\\n").encode())


@signals.task_prerun.connect(weak=False)
def tell_before(kwargs, **_):
    say("before", kwargs["key"])


@signals.task_postrun.connect(weak=False)
def tell_after(kwargs, state, retval, **_):
    say("after", kwargs["key"], state, str(retval))


from celery.__main__ import main
main()
"""


class Citizen:
    """A worker beside a bucket whose sounds are held up at a gate while a test wants it."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.settings = settings
        self.celery: Celery = create_celery(settings)
        self.lanes = open_lanes(settings)
        self._index = open_index(settings)
        self._dispatcher = Dispatcher(self.celery)
        self._gate, self._log = root / "gate", root / "worker.log"
        command = [sys.executable, "-c", SCRIPT.format(gate=str(self._gate))]
        command += ["-A", "audiofuse.workers.indexing.app", "worker", "-E", "-c", str(IN_HAND)]
        command += ["--without-gossip", "--without-mingle"]
        self.part = Part("worker", command, os.environ | environment(settings), self._log)

    @contextmanager
    def gate(self) -> Iterator[None]:
        """Let nothing be synced meanwhile."""
        self._gate.touch()
        try:
            yield
        finally:
            self._gate.unlink()

    def send(self, name: str, count: int, lane: Lane = Lane.LIVE) -> list[str]:
        """Put sounds, send their messages; return their keys."""
        keys = [f"{name}-{number}.wav" for number in range(count)]
        for key in keys:
            (Path(self.settings.bucket) / key).write_bytes(OWL.read_bytes())
            self._dispatcher.sync(key, lane)
        return keys

    def ask(self, what: str) -> Any:
        """Return what the worker answers to one of Celery's inspections."""
        answers = getattr(self.celery.control.inspect(timeout=10, limit=1), what)()
        return next(iter(answers.values()))

    def keys(self, what: str) -> list[str]:
        """Return the keys of messages that Celery knows to be active or reserved."""
        return sorted(each["kwargs"]["key"] for each in self.ask(what))

    def holds(self) -> int:
        """Return how many messages the worker has in hand, as the broker knows it."""
        return self.lanes.lengths()["unacknowledged"]

    def idle(self) -> bool:
        """Whether no message waits or is in hand."""
        return not any(self.lanes.lengths().values())

    def indexed(self) -> set[str]:
        """Return the keys of all points."""
        live = self._index.live()
        assert live
        return {point.payload["key"] for point in self._index.scroll(live, ["key"])}

    def log(self) -> str:
        """Return what the worker has said."""
        return self._log.read_text()


@pytest.fixture(scope="module")
def citizen(
    valkey_url: str, tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Encoder,
    serving: Callable[[FastAPI], AbstractContextManager[str]], eventually: Eventually,
) -> Iterator[Citizen]:  # fmt: skip
    """Run one worker for all tests, with events on, until the last of them."""
    root = tmp_path_factory.mktemp("citizen")
    (root / "bucket").mkdir()
    client = connect_embedded()
    with ExitStack() as opened:
        url = opened.enter_context(serving(embedded.create_app(client, "key")))
        settings = Settings(
            bucket=str(root / "bucket"),
            broker_url=SecretStr(valkey_url),
            qdrant_url=url,
            qdrant_api_key=SecretStr("key"),
            index_name="citizen",
            encoder=saved_bundle(tiny_encoder, root / "encoders", "tiny", "card"),
            device_socket=root / "device",
            decoders=1,
            redelivery_s=60,  # nothing comes again by itself
            grace_s=1,
        )
        opened.enter_context(device_in_threads(settings, root / "device"))
        running = Citizen(root, settings)
        # What is asked before it listens nobody answers.
        eventually(lambda: running.celery.control.ping(timeout=1, limit=1), 120)
        yield running
        running.part.stop()
    client.close()


def test_celery_shows_what_the_worker_does(citizen: Citizen, eventually: Eventually) -> None:
    """Messages are active or reserved, in hand is what ``-c`` says, the task is registered."""
    assert citizen.ask("registered") == ["sync"]
    with citizen.gate():
        live = citizen.send("shown", 1)
        eventually(lambda: citizen.keys("active") == live)
        backfill = citizen.send("reserved", IN_HAND + 5, Lane.BACKFILL)
        eventually(lambda: citizen.holds() == IN_HAND)
        eventually(lambda: len(citizen.keys("active")) == 1 + BESIDE_LIVE)
        assert len(citizen.keys("reserved")) == IN_HAND - 1 - BESIDE_LIVE
        stats = citizen.ask("stats")
        assert stats["pool"]["max-concurrency"] == IN_HAND
        assert stats["prefetch_count"] == IN_HAND
    eventually(citizen.idle)
    assert citizen.ask("stats")["total"]["sync"] >= len(live) + len(backfill)
    assert citizen.indexed() >= {*live, *backfill}


def test_signals_tell_the_key_and_the_outcome(citizen: Citizen, eventually: Eventually) -> None:
    """What listens to Celery, as Sentry and OpenTelemetry do, knows of each message."""
    (key,) = citizen.send("signals", 1)
    eventually(lambda: f"after {key} SUCCESS created\n" in citizen.log())
    assert f"before {key}" in citizen.log()


def test_a_revoked_message_is_not_worked_on(citizen: Citizen, eventually: Eventually) -> None:
    """One that waits in the worker, or comes later, is acknowledged and told of, not indexed."""
    with citizen.gate():
        citizen.send("before-revoked", 1)
        citizen.send("revoked", IN_HAND, Lane.BACKFILL)
        eventually(lambda: citizen.holds() == IN_HAND)
        ids = {each["kwargs"]["key"]: each["id"] for each in citizen.ask("reserved")}
        key = max(ids)
        citizen.celery.control.revoke([ids[key], "comes-later"], reply=True, timeout=10, limit=1)
        citizen.celery.send_task(
            "sync", kwargs={"key": "late.wav"}, queue="live", task_id="comes-later"
        )
    eventually(citizen.idle)
    assert key not in citizen.indexed()
    assert f"{key}: revoked" in citizen.log()
    assert "late.wav: revoked" in citizen.log()
    assert f"before {key}" not in citizen.log()


def test_a_rate_limit_holds_messages_back(citizen: Citizen, eventually: Eventually) -> None:
    """They stay in hand while they wait; once the limit is lifted all of them go on."""
    control = citizen.celery.control
    control.rate_limit("sync", "1/h", reply=True, timeout=10, limit=1)
    keys = citizen.send("limited", 4)
    eventually(lambda: len(citizen.indexed() & {*keys}) == 1)
    assert citizen.holds() == 3
    control.rate_limit("sync", "0", reply=True, timeout=10, limit=1)
    eventually(lambda: citizen.idle() and citizen.indexed() >= {*keys})


def test_a_lane_may_be_left_to_others(citizen: Citizen, eventually: Eventually) -> None:
    """Its messages wait until it is taken again; a queue that is no lane is refused."""
    control = citizen.celery.control
    control.cancel_consumer("backfill", reply=True, timeout=10, limit=1)
    left = citizen.send("left", 3, Lane.BACKFILL)
    taken = citizen.send("taken", 3)
    eventually(lambda: citizen.indexed() >= {*taken})
    assert citizen.lanes.lengths()["backfill"] == len(left)
    assert [each["name"] for each in citizen.ask("active_queues")] == ["live"]
    control.add_consumer("other", reply=True, timeout=10, limit=1)
    control.add_consumer("backfill", reply=True, timeout=10, limit=1)
    eventually(lambda: citizen.idle() and citizen.indexed() >= {*left})
    assert "queue other is refused: a worker takes live and backfill" in citizen.log()


@pytest.mark.parametrize("taken", [["live"], ["live", "backfill"]])
def test_only_what_is_taken_may_be_missed(taken: list[str]) -> None:
    """A worker that ``-Q`` leaves one lane to does not end because the other's messages wait."""
    celery = create_celery(Settings())
    celery.amqp.queues.select(taken)
    consumer = SimpleNamespace(app=celery)
    takes = [lane for lane in Lane if Consumer.takes(consumer, lane)]  # type: ignore[arg-type]
    assert takes == taken


def test_what_a_message_asks_for_in_vain_is_told(citizen: Citizen, eventually: Eventually) -> None:
    """A time limit, a later time: the key is synced at once; a message without a key is dropped."""
    citizen.celery.send_task(
        "sync", kwargs={"key": "owl.wav"}, queue="live", time_limit=1, countdown=3600
    )
    for body in ({"args": ["odd"]}, {"kwargs": {"key": 1}}, {"kwargs": {"key": "a", "b": 1}}):
        citizen.celery.send_task("sync", queue="live", **body)
    eventually(citizen.idle)
    assert "owl.wav: timelimit=[1, None] is not kept" in citizen.log()
    assert re.search(r"owl.wav: eta=\S+ is not kept", citizen.log())
    eventually(lambda: citizen.log().count("must name a key") >= 3)


def test_a_lost_connection_changes_nothing_in_hand(
    citizen: Citizen, valkey_url: str, eventually: Eventually
) -> None:
    """What is worked on stays in hand: it is done once, and no more is taken beside it.

    So it is after messages were revoked, refused and held back, too: nothing of them is counted.
    """
    with citizen.gate(), Redis.from_url(valkey_url) as redis:
        keys = citizen.send("lost", IN_HAND - 5)
        eventually(lambda: len(citizen.keys("active")) == len(keys))
        for connection in psutil.Process(citizen.part.process.pid).net_connections():
            with suppress(ResponseError):  # it is none to the broker
                redis.client_kill(f"127.0.0.1:{connection.laddr.port}")
        eventually(lambda: "onnection to broker lost" in citizen.log())
        more = citizen.send("more", 10)
        eventually(lambda: citizen.holds() == IN_HAND)
        assert citizen.lanes.lengths() == {"live": 5, "backfill": 0, "unacknowledged": IN_HAND}
        eventually(lambda: citizen.celery.control.ping(timeout=1, limit=1))
        assert citizen.keys("active") == sorted([*keys, *more[:5]])
    eventually(citizen.idle)
    log = citizen.log()
    assert all(log.count(f"after {key} SUCCESS created") == 1 for key in [*keys, *more])
    assert citizen.ask("stats")["prefetch_count"] == IN_HAND


@pytest.mark.parametrize(
    ("command", "arguments", "reason"),
    [
        ("time_limit", {"task_name": "sync", "hard": 5}, "threads cannot be ended"),
        ("pool_grow", {"n": 1}, "AUDIOFUSE_IN_HAND"),
        ("pool_shrink", {"n": 1}, "AUDIOFUSE_IN_HAND"),
    ],
)
def test_a_command_that_cannot_be_obeyed_is_answered_with_the_reason(
    citizen: Citizen, command: str, arguments: dict[str, Any], reason: str
) -> None:
    """The worker never says that it did what it did not."""
    ask = getattr(citizen.celery.control, command)
    (answer,) = ask(**arguments, reply=True, timeout=10, limit=1)
    assert reason in str(answer)


def test_what_is_worked_on_is_not_ended(citizen: Citizen, eventually: Eventually) -> None:
    """Revoked with ``terminate`` it goes on, and who asked is told why."""
    with citizen.gate():
        (key,) = citizen.send("terminated", 1)
        eventually(lambda: citizen.keys("active") == [key])
        (active,) = citizen.ask("active")
        control = citizen.celery.control
        (answer,) = control.terminate(active["id"], reply=True, timeout=10, limit=1)
    assert "what is worked on is not ended" in str(answer)
    eventually(lambda: citizen.idle() and key in citizen.indexed())


def test_flower_lists_workers_and_tasks(citizen: Citizen, eventually: Eventually) -> None:
    """Over HTTP: the worker by name, each message with its key and what came of it."""
    port = free_port()
    command = [sys.executable, "-m", "celery", "-A", "audiofuse.workers.indexing.app", "flower"]
    variables = os.environ | environment(citizen.settings) | {"FLOWER_UNAUTHENTICATED_API": "true"}
    log = Path(citizen.settings.bucket).parent / "flower.log"
    flower = Part("flower", [*command, f"--port={port}"], variables, log)
    url = f"http://127.0.0.1:{port}/api"

    def tasks() -> list[dict[str, Any]]:
        try:
            return list(httpx.get(f"{url}/tasks", timeout=10).raise_for_status().json().values())
        except httpx.TransportError:  # it starts
            flower.check()
            return []

    try:
        tries = 0

        def listed() -> list[dict[str, Any]]:
            nonlocal tries
            tries += 1
            citizen.send(f"flower-{tries}", 1)  # what is done before it listens it never knows
            return [each for each in tasks() if each["state"] == "SUCCESS" and each["name"]]

        task = eventually(listed)[0]
        assert task["name"] == "sync"
        assert re.fullmatch(r"\{'key': 'flower-\d+-0\.wav'\}", task["kwargs"])
        assert task["result"] == "'created'"
        workers = httpx.get(f"{url}/workers?refresh=true", timeout=30).raise_for_status().json()
        (worker,) = workers.values()
        assert worker["stats"]["pool"]["max-concurrency"] == IN_HAND
        assert worker["registered"][0].startswith("sync")
    finally:
        flower.stop()


def test_a_stop_has_a_deadline(citizen: Citizen, eventually: Eventually) -> None:
    """What does not end within the grace period goes back, and the worker ends in order."""
    with citizen.gate():
        keys = citizen.send("stop", 3)
        eventually(lambda: citizen.keys("active") == keys)
        citizen.part.process.terminate()
        began = time.monotonic()
        assert citizen.part.process.wait(60) == 0
        assert time.monotonic() - began < 30
    assert citizen.lanes.lengths() == {"live": 3, "backfill": 0, "unacknowledged": 0}
    assert "3 messages go back" in citizen.log()
    assert "Traceback" not in citizen.log().partition("stopped")[2]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pool": "celery.concurrency.solo"}, "-P celery.concurrency.solo: its pool is threads"),
        ({"concurrency": "auto"}, "AUDIOFUSE_IN_HAND"),
        ({"queues": ["live", "other"]}, "-Q or -X other: its queues are live and backfill"),
        ({"time_limit": 5.0}, "--time-limit: threads cannot be ended"),
        ({"soft_time_limit": 5.0}, "--soft-time-limit: threads cannot be ended"),
        ({"autoscale": (4, 1)}, "--autoscale: set AUDIOFUSE_IN_HAND"),
        ({"prefetch_multiplier": 4}, "AUDIOFUSE_IN_HAND"),
        ({"max_tasks_per_child": 100}, "threads of one process"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(
    options: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker does not start, and says why."""
    with pytest.raises(SystemExit) as refused:
        celery_app._refuse(options)
    assert refused.value.code == 2
    assert reason in caplog.text


def test_another_pool_is_refused_on_the_command_line(valkey_url: str) -> None:
    """Celery's own options come to where they are refused: one line, exit code 2."""
    variables = os.environ | {PREFIX + "BROKER_URL": valkey_url, PREFIX + "BUCKET": "s3://sounds"}
    command = [sys.executable, "-m", "celery", "-A", "audiofuse.workers.indexing.app", "worker"]
    done = subprocess.run(
        [*command, "-P", "solo"], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "the worker does not start: -P celery.concurrency.solo" in done.stderr
    assert "Traceback" not in done.stderr
