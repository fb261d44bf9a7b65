"""What most people would write: a Celery task that downloads, decodes, embeds by PyTorch, upserts.

``make bench-worker`` runs it by ``celery -A worker_naive worker``.
"""

import tempfile
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError
from celery import Celery

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.bundles.bundle import load_bundle
from audiofuse.core.bundles.manifest import bundle_version
from audiofuse.core.encoder.inference import prepare
from audiofuse.core.index.index import Point, open_index
from audiofuse.core.items import Metadata, point_id
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import S3_SCHEME, bucket_name

settings = Settings()
app = Celery("naive", broker=settings.broker_url.get_secret_value())
app.conf.update(
    task_acks_late=True, task_ignore_result=True, task_default_queue="live",
    worker_prefetch_multiplier=4, worker_concurrency=1,
    broker_transport_options={"global_keyprefix": f"{settings.index_name}:"},
)  # fmt: skip
assert settings.encoder
encoder, version = prepare(load_bundle(settings.encoder)), bundle_version(settings.encoder)
index = open_index(settings)
generation = index.create(version, encoder)
bucket = bucket_name(settings)


def _s3() -> Any:
    assert settings.s3_secret_access_key
    return boto3.client(
        "s3", endpoint_url=settings.s3_endpoint_url, region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key_id,
        aws_secret_access_key=settings.s3_secret_access_key.get_secret_value(),
    )  # fmt: skip


s3 = _s3() if settings.bucket.startswith(S3_SCHEME) else None


def read(key: str) -> bytes | None:
    """Return an object's bytes; ``None`` if there is no such object."""
    try:
        if s3:
            return s3.get_object(Bucket=bucket, Key=key)["Body"].read()  # type: ignore[no-any-return]
        return Path(settings.bucket, key).read_bytes()
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchKey":
            raise
    except FileNotFoundError:
        pass
    return None


@app.task(name="sync")  # type: ignore[misc]
def sync(key: str) -> None:
    """Index one sound."""
    sound, sidecar = read(key), read(f"{key}.json")
    assert sound
    with tempfile.NamedTemporaryFile() as file:
        file.write(sound)
        file.flush()
        with open_recording(Path(file.name), 600) as recording:
            heard = encoder.encode_audio(recording.windows())
    words = Metadata.from_json(sidecar).text if sidecar else ""
    fused = encoder.fuse(heard, [words])
    point = Point(
        str(point_id(bucket, key)), {"key": key}, fused.vectors[0].tolist(),
        heard.pooled[0].tolist(),
    )  # fmt: skip
    index.upsert(generation, [point])
