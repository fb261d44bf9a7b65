"""deploy/begin.py: the buckets of an empty deployment, wherever they are and whoever owns them."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from scripts import load_script

from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def begin() -> Any:
    """Return the script as a module."""
    return load_script("begin")


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_a_bucket_is_made_in_its_region(begin: Any, aws_settings: Settings, region: str) -> None:
    """S3 wants its region named for every bucket, but not for those of the region it began with."""
    settings = aws_settings.model_copy(update={"s3_region": region})
    name = f"encoders-{uuid4().hex[:8]}"
    begin.make_bucket(settings, name)
    place = s3_client(settings).get_bucket_location(Bucket=name)["LocationConstraint"]
    assert place == (None if region == "us-east-1" else region)
    begin.make_bucket(settings, name)  # and again, any number of times


def test_a_bucket_that_is_there_is_not_made(
    begin: Any, aws_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket counts if it can be reached, listed among one's own or not: it may be another's."""
    s3 = s3_client(aws_settings)
    monkeypatch.setattr(s3, "create_bucket", None)
    monkeypatch.setattr(s3, "list_buckets", lambda: {"Buckets": []})
    monkeypatch.setattr(begin, "s3_client", lambda _: s3)
    begin.make_bucket(aws_settings, aws_settings.bucket.removeprefix("s3://"))


def test_an_encrypted_bucket_is_begun_with(begin: Any, aws_settings: Settings) -> None:
    """Where a registry encrypts by a key of KMS, it stays so, and its document changes in order."""
    name = f"encoders-{uuid4().hex[:8]}"
    s3 = s3_client(aws_settings)
    s3.create_bucket(Bucket=name)
    by_default = {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "a-key"}
    rules = {"Rules": [{"ApplyServerSideEncryptionByDefault": by_default}]}
    s3.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration=rules)
    begin.make_bucket(aws_settings, name)
    registry = open_registry(aws_settings.model_copy(update={"registry": f"s3://{name}"}))
    registry.write(Rollout(live="a-1"), None)
    rollout, tag = registry.rollout()
    assert rollout
    registry.write(rollout.start("b-2", "me"), tag)
    key = s3.list_objects_v2(Bucket=name)["Contents"][0]["Key"]
    assert s3.head_object(Bucket=name, Key=key)["ServerSideEncryption"] == "aws:kms"
