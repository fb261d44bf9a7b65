"""S3 buckets: asked without boto3 where that does, and by boto3 where it does not.

Whatever ``lean`` does not answer as expected is asked of boto3 as well, which then has the last
word: with its retries, its redirects and its errors, or with an answer after all. So a failure is
what it always was, and success is cheap.
"""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from audiofuse.core.errors import Unavailable
from audiofuse.core.items import ObjectInfo
from audiofuse.core.storage.addresses import Address, plain_address
from audiofuse.core.storage.connections import Unanswered
from audiofuse.core.storage.lean import LeanBucket
from audiofuse.core.storage.objects import OneBucket, Page
from audiofuse.core.storage.refusals import Refused
from audiofuse.core.storage.temporary import scratch_file

if TYPE_CHECKING:
    from audiofuse.core.settings import Settings
    from audiofuse.core.storage.boto import BotoBucket

log = logging.getLogger(__name__)

T = TypeVar("T")
BUCKET_SEEN_S = 60  # a bucket is looked at this often at the most
# For so long boto3 alone is asked once it was given what the lean way was refused: as through a
# proxy, or in another region. Lowered, that costs a useless request more often.
REST_S = 60.0
MAX_KEY_BYTES = 1024  # S3's own limit: a longer name is no object, and S3 refuses to be asked
# By boto3, after a request that was not answered without it. If each hangs for 60 s, all of them
# together have to end before a worker takes a download for hung.
RETRIES = 2
PAGE = 1000  # objects a listing has at once, which is the most that S3 gives


class S3Bucket:
    """One bucket; every method raises ``Unavailable`` when it cannot answer.

    What is refused of one object is ``Refused``; it is ``ObjectChanged`` if it is not the one
    that was asked for. boto3 is loaded when it is needed.
    """

    def __init__(self, name: str, settings: "Settings") -> None:
        """Read the bucket with the settings' endpoint and credentials; nothing is asked yet.

        Raises ``ConfigurationError`` if these make no sense.
        """
        self.name = name
        self._settings = settings
        self._rests_until = -math.inf  # on the monotonic clock
        self._has_told = False
        plain = plain_address(settings, name)
        if plain is None:
            self.client  # noqa: B018 - it may find that the settings make no sense
        self._lean = LeanBucket(name, lambda: plain or self._address())

    @cached_property
    def client(self) -> Any:
        """A boto3 client for what is seldom done."""
        from audiofuse.core.storage.boto import s3_client

        return s3_client(self._settings, retries=RETRIES)

    @cached_property
    def boto(self) -> "BotoBucket":
        """The bucket through that client."""
        from audiofuse.core.storage.boto import BotoBucket

        return BotoBucket(self.name, self.client)

    def _address(self) -> Address:
        from audiofuse.core.storage.boto import address_of

        return address_of(self._settings, self.name)

    def exists(self) -> None:
        """See that the bucket is there."""
        self._ask(lambda bucket: bucket.exists())

    def head(self, key: str) -> ObjectInfo | None:
        """Return what the object's headers say; ``None`` if there is none, or no bucket."""
        return self._ask(lambda bucket: bucket.head(key))

    def download(self, key: str, etag: str, into: IO[bytes]) -> str:
        """Write the object into a file if it has this etag, any if that is empty; return its ETag.

        The etag is without quotes, what is returned is as S3 has it.
        """
        return self._ask(lambda bucket: bucket.download(key, etag, into))

    def part(self, key: str, etag: str, first: int, count: int) -> bytes:
        """Return ``count`` bytes from byte ``first`` on, all of which the object has."""
        return self._ask(lambda bucket: bucket.part(key, etag, first, count))

    def page(self, prefix: str, token: str | None, most: int, after: str = "") -> Page:
        """Return the next objects whose keys begin with ``prefix``, behind the key ``after``."""
        return self._ask(lambda bucket: bucket.page(prefix, token, most, after))

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """List page by page, in the order of keys, what is behind the key ``after``."""
        token = None
        while True:
            objects, token = self.page(prefix, token, PAGE, after)
            yield from objects
            if token is None:
                return

    def put(self, key: str, content: bytes | IO[bytes], tag: str | None) -> None:
        """Write if the object has this ETag, or, without one, if there is none.

        Raises ``ObjectChanged``, and writes nothing, if that is not so.
        """
        self.boto.put(key, content, tag)

    def upload(self, path: Path, key: str) -> None:
        """Upload a file, in parts if it is large."""
        self.boto.upload(path, key)

    def fetch(self, key: str, path: Path) -> None:
        """Download to a file, in parts if it is large; ``ObjectChanged`` if there is no object."""
        self.boto.fetch(key, path)

    def _ask(self, what: "Callable[[LeanBucket | BotoBucket], T]") -> T:
        if time.monotonic() < self._rests_until:
            return what(self.boto)
        try:
            return what(self._lean)
        except Unanswered as error:
            unanswered = error
        answer = what(self.boto)
        if unanswered.refuses:
            self._rest(unanswered)
        return answer

    def _rest(self, why: Unanswered) -> None:
        """Ask boto3 alone for a while: it knows a way."""
        self._rests_until = time.monotonic() + REST_S
        if not self._has_told:
            self._has_told = True
            log.warning(
                "s3://%s is asked by boto3, which takes eight times the CPU: %s", self.name, why
            )


class S3Store(OneBucket):
    """A bucket of anything that speaks S3."""

    def __init__(self, bucket: S3Bucket, public: S3Bucket | None = None) -> None:
        """Read ``bucket``; ``public`` is the same as others reach it, for links."""
        self.bucket = bucket.name
        self._s3 = bucket
        self._public = public or bucket
        self._bucket_seen = -math.inf  # when it was last known to exist, on the monotonic clock

    def head(self, key: str) -> ObjectInfo | None:
        """Ask for the object's headers; if those are refused, for what the bucket lists of it."""
        if len(key.encode()) > MAX_KEY_BYTES:
            return None
        try:
            info = self._s3.head(key)
        except Refused:
            listed = self._s3.page(key, None, 1).objects
            return next((each for each in listed if each.key == key), None)
        if info is None:
            self._check_bucket()
        return info

    def _check_bucket(self) -> None:
        """Tell a missing object from a missing bucket, lest the whole index be emptied."""
        if time.monotonic() > self._bucket_seen + BUCKET_SEEN_S:
            self._s3.exists()
            self._bucket_seen = time.monotonic()

    def read(self, info: ObjectInfo) -> bytes:
        """Get the object, provided that it is still this one."""
        with self.open(info) as path:
            return path.read_bytes()

    def part(self, info: ObjectInfo, first: int, count: int) -> bytes:
        """Get these bytes alone, provided that the object is still this one."""
        return self._get(lambda: self._s3.part(info.key, info.etag, first, count))

    @contextmanager
    def open(self, info: ObjectInfo) -> Iterator[Path]:
        """Download to a temporary file that is gone afterwards."""
        with ExitStack() as opened:
            try:
                file, path = opened.enter_context(scratch_file("audiofuse-"))
                self._get(lambda: self._s3.download(info.key, info.etag, file))
                file.flush()
            except OSError as error:
                where = f"reading s3://{self.bucket}/{info.key} into {tempfile.gettempdir()}"
                raise Unavailable(f"{where}: {error}") from error
            yield path

    def _get(self, get: Callable[[], T]) -> T:
        """Get what is in an object; ``Rejected`` if it alone is refused.

        That is so if it is refused again while the bucket answers: wrong credentials, or clocks,
        are refused by the bucket, too.
        """
        try:
            return get()
        except Refused:
            self._s3.exists()
        try:
            return get()
        except Refused as refusal:
            raise refusal.verdict from refusal

    def link(self, key: str, seconds: int) -> str:
        """Return a URL by which anybody can get the object for so long."""
        url: str = self._public.client.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=seconds
        )
        return url

    def list(self, prefix: str = "", after: str = "") -> Iterator[ObjectInfo]:
        """List page by page, in the order of keys, what is behind the key ``after``."""
        return self._s3.list(prefix, after)
