"""The webhook over HTTP: who may post, what is answered, and real storages that post to it."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from audiofuse.core.errors import Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.workers.deployment.local import free_port
from audiofuse.workers.intake.events import MAX_MESSAGE_BYTES
from audiofuse.workers.intake.handover import Handover
from audiofuse.workers.intake.webhook import WebhookIntake
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.telemetry.names import Flaw, Lane, Source

Eventually = Callable[..., Any]
HandedOver = Callable[[], list[str]]
TOKEN = "0123456789abcdef"
ODD = "field/owl + café 100%25.wav"


def _event(key: str) -> dict[str, Any]:
    detail = {"bucket": {"name": "sounds"}, "object": {"key": key}}
    return {"detail-type": "Object Created", "detail": detail}


class Webhook:
    """A running webhook, and what hands over for it."""

    def __init__(self, bucket: str, dispatcher: Dispatcher) -> None:
        self.handover = Handover(bucket, dispatcher, Source.WEBHOOK)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/events"
        self._stop = threading.Event()
        run = WebhookIntake(self.handover, TOKEN, "127.0.0.1", port).run
        self._thread = threading.Thread(target=run, args=[self._stop])
        self._thread.start()

    def close(self) -> None:
        """End it as SIGTERM would."""
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def post(self, body: object, token: str = TOKEN) -> int:
        """Post JSON as MinIO does; return the status."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.post(self.url, content=content, headers=headers, timeout=30).status_code


Start = Callable[..., Webhook]


@pytest.fixture
def start(eventually: Eventually) -> Iterator[Start]:
    """Return what starts a webhook and waits until it answers."""
    started = []

    def run(bucket: str, dispatcher: Dispatcher) -> Webhook:
        webhook = Webhook(bucket, dispatcher)
        started.append(webhook)
        eventually(lambda: _answers(webhook.url), 10)
        return webhook

    yield run
    for webhook in started:
        webhook.close()


def _answers(url: str) -> bool:
    try:
        return httpx.head(url).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def webhook(start: Start, dispatcher: Dispatcher) -> Webhook:
    """Return a webhook for the bucket ``sounds``."""
    return start("sounds", dispatcher)


def test_what_is_posted_is_handed_over(webhook: Webhook, handed_over: HandedOver) -> None:
    """The answer 200 means that the broker has the key."""
    assert webhook.post(_event(ODD)) == 200
    assert handed_over() == [ODD]


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({"Authorization": f"Bearer {TOKEN}"}, "", 200),
        ({"Authorization": f"bearer  {TOKEN}"}, "", 200),
        ({}, f"?token={TOKEN}", 200),
        ({}, "", 401),
        ({}, "?token=", 401),
        ({}, "?token=wrong-wrong-wrong", 401),
        ({"Authorization": TOKEN}, "", 401),
        ({"Authorization": "Bearer"}, "", 401),
        ({"Authorization": f"Bearer {TOKEN}x"}, "", 401),
        ({"Authorization": b"Bearer \xff\xfe"}, "", 401),
        ({"Authorization": "Bearer wrong"}, f"?token={TOKEN}", 401),
    ],
)
def test_only_who_has_the_token_may_post(
    webhook: Webhook,
    handed_over: HandedOver,
    headers: dict[str, str | bytes],
    query: str,
    status: int,
) -> None:
    """A token in the header, or in the URL without one, opens; nothing else does, and counts."""
    url = webhook.url + query
    sent = [(name.encode(), _bytes(value)) for name, value in headers.items()]
    assert httpx.post(url, json=_event("a.wav"), headers=sent).status_code == status
    refused = status == 401
    assert handed_over() == ([] if refused else ["a.wav"])
    assert webhook.handover.dropped[Flaw.UNAUTHENTICATED] == int(refused)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def test_whoever_looks_in_is_answered(webhook: Webhook) -> None:
    """MinIO looks before it sends, without a token; a probe of a fleet does, too."""
    assert httpx.head(webhook.url).status_code == 200
    assert httpx.get(webhook.url).status_code == 200
    assert httpx.get(webhook.url.replace("/events", "/readyz")).status_code == 200


def test_without_a_broker_the_sender_is_asked_to_come_again(
    start: Start, nobody: Dispatcher
) -> None:
    """503 while the broker is away: a sender with a queue keeps the event."""
    assert start("sounds", nobody).post(_event("a.wav")) == 503


def test_what_is_no_event_is_taken_and_dropped(webhook: Webhook, handed_over: HandedOver) -> None:
    """A sender that queues would repeat it for ever, and keep back all that is behind it."""
    assert webhook.post(b"hello") == 200
    assert webhook.post(b"\xff\0" * 100) == 200
    assert webhook.post(b"[" * MAX_MESSAGE_BYTES * 3) == 200
    assert webhook.post(_event("a.wav")) == 200
    assert handed_over() == ["a.wav"]
    assert webhook.handover.dropped == {Flaw.MALFORMED: 2, Flaw.TOO_LARGE: 1}


def test_many_at_once_are_all_handed_over(webhook: Webhook, handed_over: HandedOver) -> None:
    """Several senders, each with its own events, lose none to each other."""
    keys = [f"{number}.wav" for number in range(40)]

    def post(part: list[str]) -> None:
        for key in part:
            assert webhook.post(_event(key)) == 200

    threads = [threading.Thread(target=post, args=[keys[i::4]]) for i in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(handed_over()) == sorted(keys)


def _put(settings: Settings, key: str) -> None:
    s3_client(settings).put_object(
        Bucket=settings.bucket.removeprefix("s3://"), Key=key, Body=b"x" * 400
    )


def test_minio_posts_and_repeats(  # noqa: PLR0913, PLR0917 - a parameter for each part
    start: Start,
    minio_settings: Callable[..., Settings],
    tmp_path: Path,
    dispatcher: Dispatcher,
    handed_over: HandedOver,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    """MinIO's code, with its queue, sends again what was refused while the broker was away."""
    webhook = start("not known yet", dispatcher)
    (tmp_path / "queue").mkdir()
    settings = minio_settings(
        "arn:minio:sqs::AUDIOFUSE:webhook",
        MINIO_NOTIFY_WEBHOOK_ENABLE_AUDIOFUSE="on",
        MINIO_NOTIFY_WEBHOOK_ENDPOINT_AUDIOFUSE=webhook.url,
        MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_AUDIOFUSE=TOKEN,
        MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_AUDIOFUSE=str(tmp_path / "queue"),
    )
    webhook.handover._bucket = settings.bucket.removeprefix("s3://")
    refused = []

    def refuse(key: str, lane: Lane) -> None:
        refused.append((key, lane))
        raise Unavailable("the broker is away")

    with monkeypatch.context() as away:
        away.setattr(dispatcher, "sync", refuse)
        _put(settings, ODD)
        eventually(lambda: refused)
    eventually(handed_over)
    assert handed_over() == [ODD]
    assert not webhook.handover.dropped


def test_seaweedfs_posts(
    start: Start,
    seaweedfs_settings: Callable[..., Settings],
    dispatcher: Dispatcher,
    handed_over: HandedOver,
    eventually: Eventually,
) -> None:
    """SeaweedFS tells of put, batch delete, and of versions, which lie in folders of their own."""
    webhook = start("not known yet", dispatcher)
    settings = seaweedfs_settings(
        f'[notification.webhook]\nenabled = true\nendpoint = "{webhook.url}"\n'
        f'bearer_token = "{TOKEN}"\npath_prefixes = ["/buckets/sounds-"]\n'
    )
    s3, bucket = s3_client(settings), settings.bucket.removeprefix("s3://")
    webhook.handover._bucket = bucket
    _put(settings, ODD)
    eventually(handed_over)
    assert set(handed_over()) == {ODD}
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": ODD}]})
    eventually(lambda: handed_over().count(ODD) > 1)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    _put(settings, "versions/rain.wav")
    eventually(lambda: "versions/rain.wav" in handed_over())
    known = len(handed_over())
    s3.delete_object(Bucket=bucket, Key="versions/rain.wav")  # a delete marker
    eventually(lambda: "versions/rain.wav" in handed_over()[known:])
    assert set(handed_over()) == {ODD, "versions/rain.wav"}
    assert not webhook.handover.dropped
