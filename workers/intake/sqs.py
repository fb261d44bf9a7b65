"""The SQS queue to which a bucket sends its events: directly, through SNS or EventBridge."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from audiofuse.core.errors import Unavailable
from audiofuse.workers.intake.handover import Handover, persist
from audiofuse.workers.telemetry.names import Source

log = logging.getLogger(__name__)

LONG_POLL_S = 20  # the longest that SQS allows
MESSAGES_PER_POLL = 10  # likewise


class SqsIntake:
    """Reads the event notifications that a bucket sends to an SQS queue."""

    def __init__(self, client: Any, queue_url: str, handover: Handover) -> None:
        """Take messages from ``queue_url`` by a boto3 SQS client."""
        self._client = client
        self._queue_url = queue_url
        self._handover = handover
        self._in_hand: list[dict[str, str]] = []  # received and not yet handed over

    def run(self, stop: threading.Event) -> None:
        """Poll until ``stop`` is set; while the queue or the broker is away, try again."""
        log.info("reading %s", self._queue_url)
        persist(self._poll_until, stop, Source.SQS)

    def _poll_until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.poll()

    def poll(self, wait_s: int = LONG_POLL_S) -> int:
        """Hand over the next messages and only then delete them; return how many there were.

        Raises ``Unavailable``. What could not be handed over stays in hand for the next poll: were
        it received again and again, SQS would take it for bad and move it to a dead-letter queue.
        """
        if not self._in_hand:
            self._in_hand = self._receive(wait_s)
        messages = self._in_hand
        self._handover.hand_over(message["Body"] for message in messages)
        self._in_hand = []
        if messages:
            self._delete(messages)
        return len(messages)

    def _receive(self, wait_s: int) -> list[dict[str, str]]:
        answer = self._call(
            self._client.receive_message,
            MaxNumberOfMessages=MESSAGES_PER_POLL,
            WaitTimeSeconds=wait_s,
        )
        messages: list[dict[str, str]] = answer.get("Messages", [])
        return messages

    def _delete(self, messages: list[dict[str, str]]) -> None:
        entries = [
            {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]}
            for number, message in enumerate(messages)
        ]
        answer = self._call(self._client.delete_message_batch, Entries=entries)
        for failed in answer.get("Failed", ()):
            log.warning("not deleted, so it comes again, which does no harm: %s", failed)

    def _call(self, method: Callable[..., Any], **arguments: object) -> Any:
        try:
            return method(QueueUrl=self._queue_url, **arguments)
        except (ClientError, BotoCoreError) as error:
            raise Unavailable(f"{method.__name__} of {self._queue_url}: {error}") from error
