"""Make what an empty deployment begins with, once or any number of times.

    python deploy/begin.py

The buckets of AUDIOFUSE_BUCKET and AUDIOFUSE_REGISTRY, where they are in S3 and missing; in the
registry the encoder that is shipped; and the document that names it as the live one. What is there
stays, and may belong to another account.
Needs the right to make buckets and to write to the registry, which no other process needs.
"""

import tempfile
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.registry import Registry, open_registry
from audiofuse.core.errors import ObjectChanged
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client, s3_errors
from audiofuse.core.storage.store import S3_SCHEME, bucket_name

NO_BUCKET = ("404", "NoSuchBucket")
FIRST_REGION = "us-east-1"


def main() -> None:
    """Make it."""
    settings = Settings()
    if settings.bucket.startswith(S3_SCHEME):
        make_bucket(settings, bucket_name(settings))
    if settings.registry.startswith(S3_SCHEME):
        make_bucket(settings, settings.registry.removeprefix(S3_SCHEME).partition("/")[0])
    registry = open_registry(settings)
    rollout, _ = registry.rollout()
    print(f"live: {rollout.live if rollout else first_encoder(registry)}")


def make_bucket(settings: Settings, name: str) -> None:
    """Make a bucket if it is not there; one of another account is there, too."""
    s3 = s3_client(settings)
    with s3_errors(f"making s3://{name}", names_object=False):
        try:
            s3.head_bucket(Bucket=name)
        except ClientError as error:
            if error.response["Error"]["Code"] not in NO_BUCKET:
                raise
            s3.create_bucket(Bucket=name, **_place(settings.s3_region))


def _place(region: str) -> dict[str, Any]:
    """Return what says where a bucket is made: S3 takes no name for the region it began with."""
    if region == FIRST_REGION:
        return {}
    return {"CreateBucketConfiguration": {"LocationConstraint": region}}


def first_encoder(registry: Registry) -> str:
    """Publish the encoder that is shipped and name it as the live one; return what is live."""
    # Seconds of PyTorch, which each start of a deployment that has begun is spared.
    from audiofuse.core.bundles.bundle import save_bundle
    from audiofuse.core.encoder.starting import DEFAULT_NAME, default_card, default_encoder

    with tempfile.TemporaryDirectory(prefix="audiofuse-") as folder:
        bundle = save_bundle(default_encoder(), Path(folder), DEFAULT_NAME, default_card())
        version = registry.publish(bundle)
    try:
        registry.write(Rollout(live=version), None)
    except ObjectChanged:  # somebody else began at the same time
        rollout, _ = registry.rollout()
        assert rollout is not None
        return rollout.live
    return version


if __name__ == "__main__":
    main()
