"""S3 to search over real HTTP: bucket notifications to SQS, intake, worker, index, query."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings
from core.store import s3_client
from workers.client import ask
from workers.local import LocalDeployment
from workers.status import read_status

Eventually = Callable[..., Any]
SOUNDS = Path(__file__).parent.parent / "examples" / "sounds"


@pytest.fixture
def notified(aws_settings: Settings) -> Settings:
    """Return settings of a bucket that sends its events to an SQS queue."""
    sqs = s3_client(aws_settings, "sqs")
    bucket = aws_settings.bucket.removeprefix("s3://")
    url = sqs.create_queue(QueueName=f"{bucket}-events")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
    events = ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"]
    s3_client(aws_settings).put_bucket_notification_configuration(
        Bucket=bucket,
        NotificationConfiguration={
            "QueueConfigurations": [{"QueueArn": attributes["QueueArn"], "Events": events}]
        },
    )
    return aws_settings.model_copy(update={"sqs_queue_url": url})


@pytest.fixture
def deployment(
    notified: Settings, default_bundle: Path, tmp_path: Path
) -> Iterator[LocalDeployment]:
    """Run every real part for the bucket."""
    settings = notified.model_copy(update={"home": tmp_path / "home", "encoder": default_bundle})
    with LocalDeployment(settings) as running:
        yield running


@pytest.mark.timeout(240)
def test_an_upload_is_found_and_a_delete_forgotten(
    deployment: LocalDeployment, eventually: Eventually
) -> None:
    """Audio and sidecar put with boto3 are found by a sentence; changed and deleted they follow."""
    settings = deployment.settings
    s3 = s3_client(settings)
    bucket = settings.bucket.removeprefix("s3://")
    key = "field/owl + café 100%.wav"

    def found() -> dict[str, Any] | None:
        hits = ask(settings.search_url, "an owl in the forest at night", 10)
        return next((hit for hit in hits if hit["key"] == key), None)

    s3.put_object(Bucket=bucket, Key=f"{key}.json", Body=json.dumps({"title": "Owl"}).encode())
    s3.put_object(
        Bucket=bucket,
        Key=key,
        Body=(SOUNDS / "animals/owl.wav").read_bytes(),
        Metadata={"title": "beaten by the sidecar", "keywords": "night;forest"},
    )
    payload = eventually(found)["payload"]
    assert (payload["title"], payload["keywords"]) == ("Owl", ["night", "forest"])
    s3.put_object(Bucket=bucket, Key="broken.ogg", Body=b"no sound")
    eventually(lambda: [letter.key for letter in read_status(settings).latest] == ["broken.ogg"])
    s3.put_object(Bucket=bucket, Key=f"{key}.json", Body=b'{"title": "Tawny owl"}')
    eventually(lambda: (hit := found()) and hit["payload"]["title"] == "Tawny owl")
    s3.delete_object(Bucket=bucket, Key=key)
    eventually(lambda: found() is None)
    assert read_status(settings).items == 0
