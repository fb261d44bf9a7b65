"""What deploy/threats.md says is withstood, where no other test holds it; and that each line is."""

import ast
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import av
import boto3
import botocore.session
import numpy as np
import pytest
from bundles import saved_bundle
from fastapi import FastAPI
from kombu import Producer
from pydantic import SecretStr
from redis import Redis
from scripts import load_script

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.index import embedded
from audiofuse.core.index.engine import Engine
from audiofuse.core.items import MAX_NESTING, Metadata
from audiofuse.core.settings import PREFIX, Settings, environment
from audiofuse.core.storage import boto
from audiofuse.core.storage.boto import s3_client
from audiofuse.core.storage.files import S3Files
from audiofuse.core.storage.s3 import S3Bucket, S3Store
from audiofuse.core.storage.store import open_store
from audiofuse.workers.deployment.local import Part
from audiofuse.workers.intake.handover import Handover
from audiofuse.workers.intake.sqs import SqsIntake
from audiofuse.workers.queue.broker import Dispatcher, create_celery
from audiofuse.workers.queue.lanes import Lanes
from audiofuse.workers.service.uploads.places import open_place
from audiofuse.workers.telemetry.names import Lane, Source

Eventually = Callable[..., Any]
ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0


def test_every_threat_names_what_stops_it_and_a_test() -> None:
    """Each line of the threat model has an answer, and the tests that it names exist."""
    rows = re.findall(
        r"^\| (?!threat|---)(.+) \|$", (ROOT / "deploy/threats.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 15
    for row in rows:
        threat, answer, tests = (part.strip() for part in row.split(" | "))
        assert threat
        assert answer
        named = re.findall(r"`(test_\w+)\.(\w+)`", tests)
        assert named, threat
        for module, test in named:
            paths = list((ROOT / "tests").rglob(f"{module}.py"))
            assert len(paths) == 1, f"{module} of: {threat}"
            assert f"def {test}(" in paths[0].read_text(), f"{module}.{test} of: {threat}"


def _silence(path: Path, seconds: int) -> bytes:
    """Write a FLAC of silence, which is very small for its length, and return its bytes."""
    rate = 8000
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono")
        for number in range(seconds // 60):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 60 * rate), np.int16), layout="mono")
            frame.rate, frame.pts = rate, number * 60 * rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def _with_length(flac: bytes, samples: int) -> bytes:
    """Change what the header says: a FLAC's number of samples, 36 bits from the 22nd byte on."""
    high = bytes([flac[21] & 0xF0 | samples >> 32])
    return flac[:21] + high + struct.pack(">I", samples & 0xFFFFFFFF) + flac[26:]


@pytest.mark.parametrize("said", [None, 8000, 0], ids=["the truth", "one second", "unknown"])
def test_a_decompression_bomb_is_stopped_at_the_limit(tmp_path: Path, said: int | None) -> None:
    """Two hours in a small file end at the limit, whatever its header says about its length."""
    path = tmp_path / "bomb.flac"
    content = _silence(path, 2 * 3600)
    if said is not None:
        path.write_bytes(_with_length(content, said))
    heard: list[int] = []
    with pytest.raises(Rejected) as caught, open_recording(path, LIMIT_S) as recording:
        heard.extend(window.size for window in recording.windows())
    assert caught.value.reason is Reason.TOO_LONG
    assert sum(heard) <= LIMIT_S * SAMPLE_RATE


@pytest.mark.parametrize(
    ("channels", "rate"), [(1024, 8000), (65535, 8000), (255, 192_000), (1, 1), (1, 4_000_000_000)]
)
def test_absurd_headers_are_a_verdict(tmp_path: Path, channels: int, rate: int) -> None:
    """Thousands of channels, or rates that no sound has, are rejected and no bug."""
    data = b"\1\0" * 200_000
    size = channels * 2
    shape = struct.pack("<HHIIHH", 1, channels, rate, rate * size & 0xFFFFFFFF, size & 0xFFFF, 16)
    header = b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + struct.pack("<I", 16)
    path = tmp_path / "odd.wav"
    path.write_bytes(header + shape + b"data" + struct.pack("<I", len(data)) + data)
    with pytest.raises(Rejected), open_recording(path, LIMIT_S) as recording:
        list(recording.windows())


@pytest.mark.parametrize(
    "hostile",
    [
        b'{"x": ' + b"[" * MAX_NESTING + b"]" * MAX_NESTING + b"}",
        b'{"x": ' + b'{"y": ' * MAX_NESTING + b"1" + b"}" * MAX_NESTING + b"}",
        b'{"x": 1e999}',
        b'{"x": [{"y": -1e400}]}',
        b'{"x": ' + b"9" * 3000 + b"}",
    ],
    ids=["nested lists", "nested objects", "infinite", "infinite inside", "3,000 digits"],
)
def test_a_sidecar_that_no_index_could_hold_is_rejected(hostile: bytes) -> None:
    """Valid JSON that Qdrant would refuse is a verdict on the sidecar, and no bug."""
    with pytest.raises(Rejected, match=r"nested|range") as caught:
        Metadata.from_json(hostile)
    assert caught.value.reason is Reason.BAD_SIDECAR


def test_a_sidecar_may_be_odd() -> None:
    """What can be held is kept: many fields, nested ones, big numbers, any character."""
    content = {str(number): {"of": [number, {"take": 2**70}]} for number in range(5000)}
    odd = json.dumps(content | {"title": "a\0b\u202e😀"}).encode()
    metadata = Metadata.from_json(odd)
    assert metadata.extra == content
    assert metadata.title == "a\0b\u202e😀"


class Opened:
    """Tells by a file that a pickled message was opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def _send_hostile(settings: Settings, opened: Path) -> None:
    """Send what only somebody else would: code, another task, no JSON at all."""
    app = create_celery(settings)
    with app.connection_for_write() as connection:
        producer = Producer(connection.default_channel, routing_key="live")
        task = {"task": "sync", "id": "1", "lang": "py"}
        producer.publish([[], {"key": Opened(opened)}, {}], serializer="pickle", headers=task)
        producer.publish([[], {"key": "x.wav"}, {}], headers=task | {"task": "os.system"})
        producer.publish(b"\xff\xfe", content_type="application/json", headers=task)


@pytest.fixture
def worker_settings(
    redis: Redis, valkey_url: str, tmp_path: Path, tiny_encoder: Encoder
) -> Settings:
    """Return settings of a worker with the smallest encoder, for a folder with one sound."""
    del redis
    (tmp_path / "bucket").mkdir()
    bundle = saved_bundle(tiny_encoder, tmp_path / "encoders", "tiny", "card")
    owl = ROOT / "examples" / "sounds" / "animals" / "owl.wav"
    (tmp_path / "bucket" / "owl.wav").write_bytes(owl.read_bytes())
    return Settings(bucket=str(tmp_path / "bucket"), broker_url=valkey_url, encoder=bundle)


def test_no_message_runs_code(
    worker_settings: Settings,
    redis: Redis,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    """A worker drops what is pickled, names another task or is no JSON, and does what follows."""
    opened, engine = tmp_path / "opened", Engine(tmp_path / "index")
    _send_hostile(worker_settings, opened)
    Dispatcher(create_celery(worker_settings)).sync("owl.wav", Lane.LIVE)
    with serving(embedded.create_app(engine, "key")) as url:
        changes = {"qdrant_url": url, "qdrant_api_key": SecretStr("key")}
        variables = os.environ | environment(Settings(**(worker_settings.model_dump() | changes)))
        command = [sys.executable, "-m", "audiofuse", "worker"]
        worker = Part("worker", command, variables, tmp_path / "log")
        try:
            eventually(lambda: len(engine.get_collections().collections) > 1, 90)
            items, _moments = sorted(each.name for each in engine.get_collections().collections)
            eventually(lambda: engine.count(items).count == 1)
            eventually(lambda: not any(Lanes(redis, worker_settings.index_name).lengths().values()))
            worker.check()
        finally:
            worker.stop()
    engine.close()
    assert not opened.exists()
    log = (tmp_path / "log").read_text()
    assert "pickle" in log


# What AWS asks of whoever calls; a call that moto does not know as one, like an upload, is several.
ACTIONS = {
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ReceiveMessage": "sqs:ReceiveMessage",
    "DeleteMessageBatch": "sqs:DeleteMessage",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",  # by boto3, of an upload that fails
    "CreateBucket": "s3:CreateBucket",
}
KMS = {"kms:Decrypt", "kms:GenerateDataKey"}  # S3 asks for them, and no call of ours
NEVER_SEEN_TO_FAIL = {"s3:AbortMultipartUpload"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the operations that any boto3 client of this test asks a server for.

    What would be asked without boto3 is asked through it: it is the same, as the storage's tests
    hold.
    """
    seen: set[str] = set()
    core = botocore.session.Session()
    session = boto3.Session(botocore_session=core)

    def record(model: Any, **_: object) -> None:
        seen.add(model.name)

    session.events.register("before-call", record)
    monkeypatch.setattr(boto, "_session", lambda: (core, session))
    monkeypatch.setattr(S3Bucket, "_ask", lambda self, what: what(self.boto))
    return seen


def _allowed(policy: str) -> set[str]:
    statements = json.loads((ROOT / "deploy" / "aws" / f"{policy}.json").read_text())["Statement"]
    found: set[str] = set()
    for each in statements:
        assert each["Effect"] == "Allow"
        assert each["Resource"] != "*"
        found |= {each["Action"]} if isinstance(each["Action"], str) else set(each["Action"])
    return found


def _methods_called(module: str) -> set[str]:
    """Return the names of the boto3 methods that a module of ours calls on its clients."""
    tree = ast.parse((ROOT / module).read_text())
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"self._client", "s3"}
    }


def _read_everything(settings: Settings, dispatcher: Dispatcher, tmp_path: Path) -> None:
    """Do whatever intake, workers, search and reconcile do with S3 and SQS."""
    store = open_store(settings)
    assert isinstance(store, S3Store)
    assert store.head("none.wav") is None
    (info,) = store.list()
    assert store.read(info) == b"x"
    store.link(info.key, 60)
    files = S3Files(S3Bucket(store.bucket, settings), "")
    assert files.get(info.key)
    files.download(info.key, tmp_path / "copy")
    assert list(files.list())
    queue = SqsIntake(
        s3_client(settings, "sqs"), settings.sqs_queue_url, Handover("b", dispatcher, Source.SQS)
    )
    assert queue.poll(0) == 1


def test_what_runs_may_do_what_it_does_and_no_more(
    aws_settings: Settings, dispatcher: Dispatcher, calls: set[str], tmp_path: Path
) -> None:
    """The policies of intake and of those that read sounds list exactly the calls they make."""
    bucket = aws_settings.bucket.removeprefix("s3://")
    sqs = s3_client(aws_settings, "sqs")
    url = sqs.create_queue(QueueName=f"{bucket}-events")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="{}")
    s3_client(aws_settings).put_object(Bucket=bucket, Key="owl.wav", Body=b"x")
    calls.clear()
    settings = aws_settings.model_copy(update={"sqs_queue_url": url})
    _read_everything(settings, dispatcher, tmp_path)
    made = {ACTIONS[name] for name in calls}
    assert {each for each in made if each.startswith("sqs:")} == _allowed("intake")
    assert {each for each in made if each.startswith("s3:")} == _allowed("reader") - KMS


def test_an_operator_may_do_what_it_does_and_no_more(
    aws_settings: Settings, calls: set[str], tmp_path: Path
) -> None:
    """What publishing, rollouts and the first start need beyond is in the operator's policy."""
    bucket = aws_settings.bucket.removeprefix("s3://")
    calls.clear()
    begin = load_script("begin")
    begin.make_bucket(aws_settings, f"{bucket}-more")
    files = S3Files(S3Bucket(bucket, aws_settings), "encoders")
    files.put("rollout.json", b"{}", None)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(20 * 1024**2)  # as large as a bundle's weights: uploaded in parts
    files.upload(tmp_path / "large", "v/large")
    beyond = {ACTIONS[name] for name in calls} - _allowed("reader")
    assert beyond == _allowed("operator") - NEVER_SEEN_TO_FAIL - KMS


def test_who_uploads_may_do_what_it_does_and_no_more(
    aws_settings: Settings, calls: set[str], tmp_path: Path
) -> None:
    """Uploading a folder, large files in parts, asks for what the uploader's policy lists."""
    (tmp_path / "rain.wav").write_bytes(b"x")
    with (tmp_path / "large.wav").open("wb") as file:
        file.truncate(20 * 1024**2)
    calls.clear()
    load_script("upload").upload(tmp_path, aws_settings)
    assert {ACTIONS[name] for name in calls} == _allowed("uploader") - NEVER_SEEN_TO_FAIL - KMS


def test_search_writes_sounds_with_the_uploaders_policy_only(
    aws_settings: Settings, calls: set[str], tmp_path: Path
) -> None:
    """A service that takes uploads puts an object, at once however large it is, and no more."""
    with (tmp_path / "large.wav").open("wb") as file:
        file.truncate(20 * 1024**2)
    place = open_place(aws_settings, open_store(aws_settings))
    calls.clear()
    place.put(tmp_path / "large.wav", "large.wav", None)
    assert calls == {"PutObject"}
    assert ACTIONS["PutObject"] in _allowed("uploader")


def test_encrypted_buckets_are_read_and_written() -> None:
    """Who reads may have a KMS key decrypt, who writes make data keys, through S3 alone.

    S3 asks for both on behalf of whoever puts a large object in parts; the owner has the reader's
    policy besides.
    """
    for policy, actions in (
        ("reader", {"kms:Decrypt"}),
        ("operator", {"kms:GenerateDataKey"}),
        ("uploader", {"kms:GenerateDataKey", "kms:Decrypt"}),
    ):
        assert _allowed(policy) & KMS == actions
        text = (ROOT / "deploy" / "aws" / f"{policy}.json").read_text()
        (statement,) = [x for x in json.loads(text)["Statement"] if x["Sid"] == "EncryptedBuckets"]
        assert statement["Condition"] == {
            "StringEquals": {"kms:ViaService": "s3.REGION.amazonaws.com"}
        }


def test_every_call_to_aws_is_among_those_that_were_looked_at() -> None:
    """No module calls a boto3 method that the tests of both policies do not make it call."""
    modules = ("core/storage/boto.py", "workers/intake/sqs.py", "deploy/begin.py")
    assert set().union(*map(_methods_called, modules)) == {
        "head_object", "head_bucket", "get_object", "list_objects_v2", "put_object",
        "upload_file", "download_file", "receive_message", "delete_message_batch", "create_bucket",
    }  # fmt: skip


@pytest.mark.parametrize(
    "name_and_value",
    [
        ("BROKER_URL", "redis://:hunter2-secret@127.0.0.1:1/0"),
        ("BROKER_URL", "redis://:hunter2-secret@127.0.0.1:port/0"),
        ("BROKER_URL", "hunter2-secret"),
        ("WEBHOOK_TOKEN", "hunter2-secret"),
    ],
)
def test_no_error_shows_a_secret(name_and_value: tuple[str, str]) -> None:
    """Whatever is wrong with a secret, or with what it opens, the message does not repeat it."""
    name, value = name_and_value
    command = ["intake", "webhook"] if name == "WEBHOOK_TOKEN" else ["status"]
    variables = os.environ | {PREFIX + name: value, PREFIX + "BUCKET": "s3://sounds"}
    done = subprocess.run(
        [sys.executable, "-m", "audiofuse", *command],
        env=variables, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode
    assert "hunter2" not in done.stdout + done.stderr
