"""The Redis list: MinIO's own notification code, and crashes between taking and handing over."""

import base64
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from audiofuse.core.errors import Unavailable
from audiofuse.core.index.index import Index, Point, connect_embedded
from audiofuse.core.items import point_id
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.store import open_store
from audiofuse.workers.intake.handover import Handover
from audiofuse.workers.intake.redis_list import AT_ONCE, RedisListIntake
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.repair.comparison import compare
from audiofuse.workers.telemetry.names import Source

Eventually = Callable[..., Any]
HandedOver = Callable[[], list[str]]
CORPUS = json.loads((Path(__file__).parents[3] / "tests" / "data" / "events.json").read_text())
LIST, TAKEN = "events", "events:taken"
ODD = "field/owl + café 100%25.wav"


def _message(key: str, bucket: str = "sounds") -> bytes:
    """Return what MinIO appends when the object of a key was put."""
    event = {
        "eventName": "s3:ObjectCreated:Put",
        "eventSource": "minio:s3",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key}},
    }
    return json.dumps([{"Event": [event], "EventTime": "2026-01-01T00:00:00.000Z"}]).encode()


@pytest.fixture
def client(valkey_url: str, redis: Redis) -> Iterator[Redis]:
    """Return a client that answers in bytes, of an empty Valkey."""
    del redis
    client: Redis = Redis.from_url(valkey_url)
    yield client
    client.close()


def _drain(intake: RedisListIntake) -> None:
    while intake.read(wait_s=0.01):
        pass


def test_what_lies_in_the_list_is_handed_over_oldest_first(
    client: Redis, dispatcher: Dispatcher, handed_over: HandedOver
) -> None:
    """More than one batch is handed over in order, and nothing is left in either list."""
    keys = [f"{number}.wav" for number in range(AT_ONCE + 5)]
    client.rpush(LIST, *map(_message, keys))
    _drain(RedisListIntake(client, LIST, Handover("sounds", dispatcher, Source.REDIS)))
    assert handed_over() == keys
    assert not client.exists(LIST, TAKEN)


def test_what_was_not_handed_over_is_taken_again(
    client: Redis, dispatcher: Dispatcher, nobody: Dispatcher, handed_over: HandedOver
) -> None:
    """While the broker is away the messages are kept; whoever starts next begins with them."""
    client.rpush(LIST, _message("a.wav"), _message("b.wav"))
    with pytest.raises(Unavailable):
        RedisListIntake(client, LIST, Handover("sounds", nobody, Source.REDIS)).read()
    assert client.llen(TAKEN) == 2
    client.rpush(LIST, _message("c.wav"))
    successor = RedisListIntake(client, LIST, Handover("sounds", dispatcher, Source.REDIS))
    successor._put_back()
    _drain(successor)
    assert handed_over() == ["a.wav", "b.wav", "c.wav"]
    assert not client.exists(LIST, TAKEN)


def test_a_second_intake_that_starts_meanwhile_loses_nothing(
    client: Redis, dispatcher: Dispatcher, handed_over: HandedOver
) -> None:
    """What another intake has in hand may be handed over twice, but always at least once."""
    client.rpush(LIST, _message("a.wav"), _message("b.wav"))
    handover = Handover("sounds", dispatcher, Source.REDIS)
    first, second = (RedisListIntake(client, LIST, handover) for _ in "12")
    in_hand = first._take(wait_s=1)
    second._put_back()
    _drain(second)
    first._handover.hand_over(in_hand)
    assert handed_over() == ["a.wav", "b.wav"] * 2
    assert not client.exists(LIST, TAKEN)


def test_malformed_messages_never_stop_it(
    client: Redis, dispatcher: Dispatcher, handed_over: HandedOver
) -> None:
    """After a thousand mangled messages of every dialect, and an empty one, the next is read."""
    draw = random.Random(0)
    for _ in range(1000):
        body = bytearray(json.dumps(draw.choice(CORPUS)["body"]).encode())
        for _ in range(draw.randrange(1, 6)):
            body[draw.randrange(len(body))] = draw.randrange(256)
        client.rpush(LIST, bytes(body))
    client.rpush(LIST, b"", _message("last.wav"))
    intake = RedisListIntake(client, LIST, Handover("sounds", dispatcher, Source.REDIS))
    _drain(intake)
    assert handed_over()[-1] == "last.wav"
    assert intake._handover.dropped.total() > 500
    assert not client.exists(LIST, TAKEN)


def test_a_kill_between_taking_and_handing_over_loses_nothing(
    client: Redis, valkey_url: str, handed_over: HandedOver, eventually: Eventually
) -> None:
    """An intake that is killed while the broker does not answer leaves its message to the next."""
    with socket.create_server(("127.0.0.1", 0)) as mute:  # it takes connections, and never answers
        broker = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        client.rpush(LIST, _message("rain.wav"))
        with _process(valkey_url, broker) as doomed:
            eventually(lambda: client.llen(TAKEN))
            doomed.kill()
            assert doomed.wait(10) == -signal.SIGKILL
    assert (client.llen(LIST), client.llen(TAKEN), handed_over()) == (0, 1, [])
    with _process(valkey_url, valkey_url) as successor:
        eventually(handed_over)
        successor.terminate()
        assert successor.wait(10) == 0
    assert handed_over() == ["rain.wav"]
    assert not client.exists(LIST, TAKEN)


@contextmanager
def _process(events_url: str, broker_url: str) -> Iterator[subprocess.Popen[bytes]]:
    values = {
        "BUCKET": "s3://sounds",
        "REDIS_EVENTS_KEY": LIST,
        "REDIS_EVENTS_URL": events_url,
        "BROKER_URL": broker_url,
    }
    environment = os.environ | {PREFIX + name: value for name, value in values.items()}
    command = [sys.executable, "-m", "audiofuse", "intake", "redis"]
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def minio(minio_settings: Callable[..., Settings], valkey_url: str, client: Redis) -> Settings:
    """Return settings for a bucket whose events MinIO's code appends to the list."""
    del client
    return minio_settings(
        "arn:minio:sqs::AUDIOFUSE:redis",
        MINIO_NOTIFY_REDIS_ENABLE_AUDIOFUSE="on",
        MINIO_NOTIFY_REDIS_ADDRESS_AUDIOFUSE=valkey_url.split("/")[2],
        MINIO_NOTIFY_REDIS_KEY_AUDIOFUSE=LIST,
        MINIO_NOTIFY_REDIS_FORMAT_AUDIOFUSE="access",
    )


def test_minios_events_are_handed_over(
    minio: Settings,
    client: Redis,
    dispatcher: Dispatcher,
    handed_over: HandedOver,
    eventually: Eventually,
) -> None:
    """Put, copy and delete arrive to the letter; tags, which change no sound, do not."""
    s3, bucket = s3_client(minio), minio.bucket.removeprefix("s3://")
    intake = RedisListIntake(client, LIST, Handover(bucket, dispatcher, Source.REDIS))

    def read() -> list[str]:
        _drain(intake)
        return handed_over()

    s3.put_object(Bucket=bucket, Key=ODD, Body=b"x")
    eventually(lambda: read() == [ODD])
    tags = {"TagSet": [{"Key": "a", "Value": "b"}]}
    s3.put_object_tagging(Bucket=bucket, Key=ODD, Tagging=tags)
    s3.copy_object(Bucket=bucket, Key="copy.wav", CopySource={"Bucket": bucket, "Key": ODD})
    eventually(lambda: read() == [ODD, "copy.wav"])
    s3.delete_object(Bucket=bucket, Key=ODD)
    eventually(lambda: read() == [ODD, "copy.wav", ODD])
    assert not intake._handover.dropped


@dataclass(frozen=True)
class Sizes:
    """The widths of vectors that nobody compares here."""

    dim: int = 2
    audio_dim: int = 2


def test_a_batch_delete_of_which_nobody_tells_is_found_by_reconcile(
    minio: Settings, client: Redis, redis: Redis
) -> None:
    """MinIO's code tells nobody of a batch delete; comparing bucket and index finds it."""
    store, s3 = open_store(minio), s3_client(minio)
    s3.put_object(Bucket=store.bucket, Key=ODD, Body=b"x")
    index = Index(connect_embedded(), "audiofuse")
    generation = index.create("tiny-000000", Sizes())
    put = store.head(ODD)
    assert put is not None
    payload = {
        "bucket": store.bucket,
        "key": ODD,
        "etag": put.etag,
        "sidecar_etag": "",
        "modified": put.modified_ms,
    }
    index.upsert(generation, [Point(str(point_id(store.bucket, ODD)), payload, (1, 0), (1, 0))])
    s3.meta.events.register("before-call.s3.DeleteObjects", _with_md5)
    s3.delete_objects(Bucket=store.bucket, Delete={"Objects": [{"Key": ODD}]})
    assert client.llen(LIST) == 1  # the put
    letters = DeadLetters(redis, "audiofuse")
    with compare(store, index, generation, letters) as comparison:
        assert list(comparison.keys()) == [ODD]


def _with_md5(params: dict[str, Any], **_: object) -> None:
    """Send the checksum that older servers ask for, and that boto3 no longer sends."""
    digest = hashlib.md5(params["body"]).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()
