"""SQS over HTTP: real bucket notifications, directly, through SNS and through EventBridge."""

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from audiofuse.core.errors import Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client
from audiofuse.workers.intake.handover import Handover
from audiofuse.workers.intake.sqs import SqsIntake
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.telemetry.names import Flaw, Source

HandedOver = Callable[[], list[str]]
Connect = Callable[["Bucket"], None]
PART = b"x" * 5 * 1024**2  # the smallest that a multipart upload may have before its last
ODD = "field/owl + café 100%25.wav"


class Bucket:
    """A bucket on moto's server, with a queue, a dead-letter queue, and an intake that reads."""

    def __init__(self, settings: Settings, dispatcher: Dispatcher, **attributes: str) -> None:
        self.settings = settings
        self.name = settings.bucket.removeprefix("s3://")
        self.s3, self.sqs = s3_client(settings), s3_client(settings, "sqs")
        self.dead = self.sqs.create_queue(QueueName=f"{self.name}-dead")["QueueUrl"]
        redrive = {"deadLetterTargetArn": self.arn(self.dead), "maxReceiveCount": "1"}
        attributes |= {"RedrivePolicy": json.dumps(redrive)}
        self.url = self.sqs.create_queue(QueueName=self.name, Attributes=attributes)["QueueUrl"]
        self.handover = Handover(self.name, dispatcher, Source.SQS)
        self.intake = SqsIntake(self.sqs, self.url, self.handover)

    def arn(self, url: str) -> str:
        """Return the ARN of a queue."""
        answer = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        return str(answer["Attributes"]["QueueArn"])

    def notify(self, **configuration: Any) -> None:
        """Have the bucket send its events somewhere."""
        self.s3.put_bucket_notification_configuration(
            Bucket=self.name, NotificationConfiguration=configuration
        )

    def left(self, url: str) -> int:
        """Return how many messages a queue holds, received or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)
        return sum(int(count) for count in answer["Attributes"].values())

    def read(self) -> None:
        """Poll until the queue is empty."""
        while self.intake.poll(wait_s=0):
            pass

    def put(self, key: str) -> None:
        """Put a small object."""
        self.s3.put_object(Bucket=self.name, Key=key, Body=b"x")


@pytest.fixture
def bucket(aws_settings: Settings, dispatcher: Dispatcher) -> Bucket:
    """Return a bucket that notifies nobody yet."""
    return Bucket(aws_settings, dispatcher)


EVENTS = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]


def _directly(bucket: Bucket) -> None:
    bucket.notify(QueueConfigurations=[{"QueueArn": bucket.arn(bucket.url), "Events": EVENTS}])


def _through_sns(bucket: Bucket, raw: str = "false") -> None:
    sns = s3_client(bucket.settings, "sns")
    topic = sns.create_topic(Name=bucket.name)["TopicArn"]
    sns.subscribe(
        TopicArn=topic,
        Protocol="sqs",
        Endpoint=bucket.arn(bucket.url),
        Attributes={"RawMessageDelivery": raw},
    )
    bucket.notify(TopicConfigurations=[{"TopicArn": topic, "Events": EVENTS}])


def _through_sns_raw(bucket: Bucket) -> None:
    _through_sns(bucket, raw="true")


def _through_eventbridge(bucket: Bucket) -> None:
    events = s3_client(bucket.settings, "events")
    pattern = {"source": ["aws.s3"], "detail": {"bucket": {"name": [bucket.name]}}}
    events.put_rule(Name=bucket.name, EventPattern=json.dumps(pattern))
    target = {"Id": "audiofuse", "Arn": bucket.arn(bucket.url)}
    events.put_targets(Rule=bucket.name, Targets=[target])
    bucket.notify(EventBridgeConfiguration={})


@pytest.mark.parametrize(
    "connect", [_directly, _through_sns, _through_sns_raw, _through_eventbridge]
)
def test_what_happens_in_the_bucket_is_handed_over(
    bucket: Bucket, connect: Connect, handed_over: HandedOver
) -> None:
    """However S3's events reach the queue, put, copy, multipart and delete are, to the letter."""
    connect(bucket)
    for key in (ODD, "rain.wav", "rain.wav.json", "notes.txt"):
        bucket.put(key)
    bucket.s3.copy_object(
        Bucket=bucket.name, Key="copy.wav", CopySource={"Bucket": bucket.name, "Key": ODD}
    )
    target = {"Bucket": bucket.name, "Key": "long.wav"}
    upload = bucket.s3.create_multipart_upload(**target)["UploadId"]
    part = bucket.s3.upload_part(**target, UploadId=upload, PartNumber=1, Body=PART)
    parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
    bucket.s3.complete_multipart_upload(**target, UploadId=upload, MultipartUpload=parts)
    bucket.read()
    assert set(handed_over()) == {ODD, "rain.wav", "copy.wav", "long.wav"}
    before = len(handed_over())
    bucket.s3.delete_object(Bucket=bucket.name, Key=ODD)
    bucket.s3.delete_objects(
        Bucket=bucket.name, Delete={"Objects": [{"Key": "rain.wav"}, {"Key": "copy.wav"}]}
    )
    bucket.read()
    if connect is not _through_eventbridge:  # where moto tells of no batch delete
        assert set(handed_over()[before:]) == {ODD, "rain.wav", "copy.wav"}
    assert ODD in handed_over()[before:]
    assert not bucket.handover.dropped
    assert bucket.left(bucket.url) == 0


def test_a_bad_message_is_dropped_and_the_queue_goes_on(
    bucket: Bucket, handed_over: HandedOver
) -> None:
    """What is no event leaves the queue too, so that it neither blocks nor comes again."""
    _directly(bucket)
    for body in ("hello", '{"Records": [{}]}', '{"Records": 5}'):
        bucket.sqs.send_message(QueueUrl=bucket.url, MessageBody=body)
    bucket.put("rain.wav")
    bucket.read()
    assert handed_over() == ["rain.wav"]
    assert bucket.handover.dropped == {Flaw.MALFORMED: 3}
    assert bucket.left(bucket.url) == bucket.left(bucket.dead) == 0


def test_nothing_is_deleted_before_the_broker_has_it(
    aws_settings: Settings, dispatcher: Dispatcher, nobody: Dispatcher, handed_over: HandedOver
) -> None:
    """While the broker is away messages wait in hand: none is deleted, none counts as failed."""
    bucket = Bucket(aws_settings, nobody, VisibilityTimeout="0")
    _directly(bucket)
    bucket.read()  # the test event, which needs no broker
    bucket.put("rain.wav")
    for _ in range(2):
        with pytest.raises(Unavailable):
            bucket.intake.poll(wait_s=0)
    assert (bucket.left(bucket.url), bucket.left(bucket.dead)) == (1, 0)
    bucket.handover._dispatcher = dispatcher
    bucket.read()
    assert handed_over() == ["rain.wav"]
    assert (bucket.left(bucket.url), bucket.left(bucket.dead)) == (0, 0)


def test_what_a_crashed_intake_had_in_hand_comes_again(
    aws_settings: Settings, dispatcher: Dispatcher, nobody: Dispatcher, handed_over: HandedOver
) -> None:
    """A message that was received and never handed over is delivered to the next intake."""
    bucket = Bucket(aws_settings, nobody, VisibilityTimeout="1")
    bucket.sqs.set_queue_attributes(QueueUrl=bucket.url, Attributes={"RedrivePolicy": ""})
    _directly(bucket)
    bucket.read()
    bucket.put("rain.wav")
    with pytest.raises(Unavailable):
        bucket.intake.poll(wait_s=0)
    successor = SqsIntake(bucket.sqs, bucket.url, Handover(bucket.name, dispatcher, Source.SQS))
    assert successor.poll(wait_s=5) == 1
    assert handed_over() == ["rain.wav"]


def test_a_message_that_is_not_deleted_is_logged(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    """SQS answers success even when it deletes nothing; what failed is in the log."""
    caplog.set_level(logging.WARNING, "audiofuse")
    bucket.intake._delete([{"ReceiptHandle": "no such handle"}])
    assert "ReceiptHandleIsInvalid" in caplog.text


def test_a_message_is_waited_for(bucket: Bucket, handed_over: HandedOver) -> None:
    """A long poll returns with the message as soon as one comes."""
    _directly(bucket)
    bucket.read()
    late = threading.Timer(0.5, bucket.put, ["rain.wav"])
    late.start()
    began = time.monotonic()
    assert bucket.intake.poll(wait_s=20) == 1
    assert time.monotonic() - began < 10
    assert handed_over() == ["rain.wav"]
    late.join()


def test_a_queue_that_is_away_is_unavailable(bucket: Bucket) -> None:
    """Whatever boto3 raises becomes the error after which an intake tries again."""
    bucket.sqs.delete_queue(QueueUrl=bucket.url)
    with pytest.raises(Unavailable, match=bucket.name):
        bucket.intake.poll(wait_s=0)
