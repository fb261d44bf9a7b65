"""Intake: event sources that hand changed keys over to the queue. No torch is reached."""

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from redis import RedisError
from watchfiles import watch

from core.errors import AudiofuseError
from core.store import FolderStore
from workers.broker import Dispatcher, Lane
from workers.events import MalformedEvent, key_to_sync, parse_s3

log = logging.getLogger(__name__)

LONG_POLL_S = 20  # the longest that SQS allows
MESSAGES_PER_POLL = 10  # likewise
RETRY_PAUSE_S = 5.0
SETTLE_MS = 200  # changes of one file within this time are one change
CHECK_STOP_MS = 500

AWAY = (AudiofuseError, ClientError, BotoCoreError, RedisError, OSError)

Reconcile = Callable[[str], Iterable[str]]


def _persist(run: Callable[[threading.Event], None], stop: threading.Event) -> None:
    """Run a source until ``stop`` is set; while something it needs is away, begin it again."""
    while not stop.is_set():
        try:
            run(stop)
        except AWAY as error:
            log.warning("intake pauses for %.0f s: %s", RETRY_PAUSE_S, error)
            stop.wait(RETRY_PAUSE_S)


class FolderIntake:
    """Watches a folder by the operating system's own notifications."""

    def __init__(self, store: FolderStore, dispatcher: Dispatcher, reconcile: Reconcile) -> None:
        """Hand over every change; ``reconcile(prefix)`` finds what notifications do not tell."""
        self._store = store
        self._dispatcher = dispatcher
        self._reconcile = reconcile

    def run(self, stop: threading.Event) -> None:
        """Watch until ``stop`` is set. What changed while nobody watched is found first."""
        _persist(self._watch, stop)

    def _watch(self, stop: threading.Event) -> None:
        caught_up = False
        for changes in watch(
            self._store.root, debounce=SETTLE_MS, step=50, stop_event=stop,
            rust_timeout=CHECK_STOP_MS, yield_on_timeout=True, watch_filter=None,
        ):  # fmt: skip
            for path in sorted({path for _, path in changes}):
                self._changed(Path(path))
            if not caught_up:  # only now that the watch is on: nothing falls between the two
                caught_up = True
                log.info("watching %s", self._store.root)
                self._catch_up("")

    def _changed(self, path: Path) -> None:
        key = self._store.key_of(path)
        if key is None:
            return
        if target := key_to_sync(key):
            self._dispatcher.sync(target, Lane.LIVE)
        elif path.is_dir() or not path.exists():
            self._catch_up(f"{key}/")  # a whole folder came, went, or was renamed

    def _catch_up(self, prefix: str) -> None:
        count = 0
        for count, key in enumerate(self._reconcile(prefix), 1):  # noqa: B007 - counted for the log
            self._dispatcher.sync(key, Lane.BACKFILL)
        if count:
            log.info("%d objects under %r differ from the index", count, prefix)


class SqsIntake:
    """Reads the S3 event notifications that a bucket sends to an SQS queue."""

    def __init__(self, client: Any, queue_url: str, bucket: str, dispatcher: Dispatcher) -> None:
        """Take the events of ``bucket`` from ``queue_url`` by a boto3 SQS client."""
        self._client = client
        self._queue_url = queue_url
        self._bucket = bucket
        self._dispatcher = dispatcher

    def run(self, stop: threading.Event) -> None:
        """Poll until ``stop`` is set; while the queue or the broker is away, try again."""
        log.info("reading %s", self._queue_url)
        _persist(self._poll_until, stop)

    def _poll_until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.poll()

    def poll(self, wait_s: int = LONG_POLL_S) -> int:
        """Hand over the next messages and only then delete them; return how many there were."""
        answer = self._client.receive_message(
            QueueUrl=self._queue_url,
            MaxNumberOfMessages=MESSAGES_PER_POLL,
            WaitTimeSeconds=wait_s,
        )
        messages = answer.get("Messages", [])
        for message in messages:
            self._hand_over(message["Body"])
        if messages:
            self._delete(messages)
        return len(messages)

    def _hand_over(self, body: str) -> None:
        try:
            events = parse_s3(body)
        except MalformedEvent as error:
            log.warning("dropped: %s", error)
            return
        for event in events:
            if event.bucket != self._bucket:
                log.warning("dropped: an event of the bucket %r", event.bucket)
            elif key := key_to_sync(event.key):
                self._dispatcher.sync(key, Lane.LIVE)

    def _delete(self, messages: list[dict[str, str]]) -> None:
        entries = [
            {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
            for number, message in enumerate(messages)
        ]
        # An entry that fails to be deleted is delivered again, which does no harm.
        self._client.delete_message_batch(QueueUrl=self._queue_url, Entries=entries)
