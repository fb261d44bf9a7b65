"""boto3: a bucket through it, its clients, and what it knows of addresses and credentials.

Loading it takes 0.2 s and 27 MiB, so what many processes reach imports this where it is needed.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from boto3.exceptions import Boto3Error
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.httpsession import where
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from audiofuse.core.errors import ConfigurationError, ObjectChanged, Unavailable
from audiofuse.core.items import ObjectInfo
from audiofuse.core.storage.addresses import Address
from audiofuse.core.storage.connections import CONNECT_S, PIECE, READ_S, Unanswered
from audiofuse.core.storage.objects import Page, object_info
from audiofuse.core.storage.refusals import CHANGED, ONE_OBJECTS, Refused
from audiofuse.core.storage.signing import Credentials

if TYPE_CHECKING:
    from audiofuse.core.settings import Settings


@contextmanager
def s3_errors(where: str, *, names_object: bool = True) -> Iterator[None]:
    """Raise what boto3 raises as ours: ``ObjectChanged``, ``Refused`` or ``Unavailable``.

    An object is changed if it is gone, or is not the one that was asked for. ``where`` is told.
    """
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if names_object and code in CHANGED:
            raise ObjectChanged(f"{where}: {error}") from error
        if names_object and code in ONE_OBJECTS:
            raise Refused(f"{where}: {error}", code) from error
        raise Unavailable(f"{where}: {error}") from error
    except (BotoCoreError, Boto3Error, HTTPError, OSError) as error:
        raise Unavailable(f"{where}: {error}") from error


_making = threading.Lock()  # a session makes one client at a time


@cache
def _session() -> tuple[botocore.session.Session, boto3.Session]:
    """Return what all clients of this process have in common: credentials are refreshed once."""
    session = botocore.session.Session()
    return session, boto3.Session(botocore_session=session)


def s3_client(settings: "Settings", service: str = "s3", retries: int = 3) -> Any:
    """Make a boto3 client (``s3`` or ``sqs``) for the endpoint and credentials of the settings.

    Credentials that are not set come from boto3's own chain (environment, profile, role).
    """
    secret = settings.s3_secret_access_key
    try:
        with _making:
            _, session = _session()
            return session.client(
                service,
                endpoint_url=settings.s3_endpoint_url,
                region_name=settings.s3_region,
                aws_access_key_id=settings.s3_access_key_id,
                aws_secret_access_key=secret.get_secret_value() if secret else None,
                verify=str(settings.ca_file) if settings.ca_file else None,
                config=Config(
                    signature_version="s3v4" if service == "s3" else None,  # of links, too
                    connect_timeout=CONNECT_S,
                    read_timeout=READ_S,
                    max_pool_connections=settings.in_hand,  # a thread for each message
                    retries={"mode": "standard", "total_max_attempts": 1 + retries},
                    # Not every S3 server knows the newer default checksums.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )
    except (ValueError, BotoCoreError) as error:
        raise ConfigurationError(
            f"AUDIOFUSE_S3_ENDPOINT_URL or AUDIOFUSE_S3_REGION is wrong: {error}"
        ) from error


class BotoBucket:
    """One bucket through boto3, which repeats, goes where it is sent, and says what is wrong."""

    def __init__(self, name: str, client: Any) -> None:
        """Read the bucket through a boto3 S3 client."""
        self._name = name
        self._client = client

    def exists(self) -> None:
        """See that the bucket is there."""
        with self._errors("head_bucket"):
            self._client.head_bucket(Bucket=self._name)

    def head(self, key: str) -> ObjectInfo | None:
        """Return what the object's headers say; ``None`` if there is none, or no bucket."""
        try:
            with self._errors("head_object", key):
                answer = self._client.head_object(Bucket=self._name, Key=key)
        except ObjectChanged:
            return None
        return object_info(
            key,
            answer["ETag"],
            answer["ContentLength"],
            answer["LastModified"],
            answer["Metadata"],
        )

    def download(self, key: str, etag: str, into: IO[bytes]) -> str:
        """Write the object, if it has this etag, into a file; see ``S3Bucket``."""
        condition = {"IfMatch": etag} if etag else {}
        with self._errors("get_object", key):
            answer = self._client.get_object(Bucket=self._name, Key=key, **condition)
        with closing(answer["Body"]) as body:
            while piece := self._read(body, key):
                into.write(piece)
        tag: str = answer["ETag"]
        return tag

    def part(self, key: str, etag: str, first: int, count: int) -> bytes:
        """Return some bytes of the object, if it has this etag; see ``S3Bucket``."""
        place = {"Bucket": self._name, "Key": key, "IfMatch": etag}
        with self._errors("get_object", key):
            answer = self._client.get_object(**place, Range=f"bytes={first}-{first + count - 1}")
        with closing(answer["Body"]) as body:
            if "ContentRange" not in answer:
                raise Unavailable(f"get_object s3://{self._name}/{key}: it gives no ranges")
            return self._read(body, key, count)

    def _read(self, body: Any, key: str, count: int = PIECE) -> bytes:
        with self._errors("get_object", key):
            piece: bytes = body.read(count)
            return piece

    def page(self, prefix: str, token: str | None, most: int, after: str = "") -> Page:
        """Return the next objects whose keys begin with ``prefix``, behind the key ``after``."""
        begin = {"ContinuationToken": token} if token else {"StartAfter": after} if after else {}
        with self._errors("list_objects_v2"):
            page = self._client.list_objects_v2(
                Bucket=self._name, Prefix=prefix, MaxKeys=most, **begin
            )
        objects = [
            object_info(each["Key"], each["ETag"], each["Size"], each["LastModified"])
            for each in page.get("Contents", ())
        ]
        return Page(objects, page["NextContinuationToken"] if page.get("IsTruncated") else None)

    def put(self, key: str, content: bytes | IO[bytes], tag: str | None) -> None:
        """Write if the object has this ETag, or, without one, if there is none."""
        condition = {"IfMatch": tag} if tag else {"IfNoneMatch": "*"}
        with self._errors("put_object", key):
            self._client.put_object(Bucket=self._name, Key=key, Body=content, **condition)

    def upload(self, path: Path, key: str) -> None:
        """Upload a file, in parts if it is large."""
        with self._errors("upload_file", key):
            self._client.upload_file(str(path), self._name, key)

    def fetch(self, key: str, path: Path) -> None:
        """Download to a file, in parts if it is large."""
        with self._errors("download_file", key):
            self._client.download_file(self._name, key, str(path))

    def _errors(self, method: str, key: str = "") -> AbstractContextManager[None]:
        return s3_errors(f"{method} s3://{self._name}/{key}", names_object=bool(key))


def address_of(settings: "Settings", bucket: str) -> Address:
    """Return where boto3 would ask for a bucket, with its credentials, refreshed as they expire.

    Raises ``Unanswered``.
    """
    request = _would_send(s3_client(settings), bucket)
    scheme, netloc, path, _, _ = urlsplit(request.url)
    scope = request.headers["Authorization"].decode().partition(",")[0]
    *_, region, _service, _ = scope.split("/")
    url = f"{scheme}://{netloc}{path.rstrip('/')}"
    return Address(url, region, _credentials(settings), _authorities(settings))


def _would_send(client: Any, bucket: str) -> Any:
    """Return the request by which a client, used for nothing else, looks for a bucket; unsent."""
    requests: list[Any] = []

    def keep(request: Any, **_: object) -> AWSResponse:
        requests.append(request)
        return AWSResponse(request.url, 200, {}, HTTPResponse(BytesIO(), preload_content=False))

    client.meta.events.register("before-send.s3.HeadBucket", keep)
    try:
        client.head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        raise Unanswered(f"boto3 finds no address of s3://{bucket}: {error}") from error
    return requests[0]


def _credentials(settings: "Settings") -> Callable[[], Credentials]:
    secret = settings.s3_secret_access_key
    if settings.s3_access_key_id and secret:
        return partial(Credentials, settings.s3_access_key_id, secret.get_secret_value())
    session, _ = _session()
    held = session.get_credentials()  # that clients have, too

    def present() -> Credentials:
        try:
            access_key, secret_key, token, *_ = held.get_frozen_credentials()
        except (BotoCoreError, ClientError) as error:
            raise Unanswered(f"boto3 has no credentials: {error}") from error
        return Credentials(access_key, secret_key, token)

    return present


def _authorities(settings: "Settings") -> Path:
    """Return the file by which boto3 knows servers."""
    session, _ = _session()
    configured = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    return settings.ca_file or Path(configured or where())
