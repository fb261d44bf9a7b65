"""A bucket asked without boto3, which takes seven to nine times the CPU.

Only what is asked all the time, and only the answers that are expected. Whatever else comes, or
does not come, is ``Unanswered``: boto3 is asked then, which repeats, is sent elsewhere, or knows
what is wrong. So this need not be right about anything but success.
"""

import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import IO, NamedTuple, NoReturn
from urllib.parse import quote, unquote_plus

from audiofuse.core.errors import Unavailable
from audiofuse.core.items import ObjectInfo
from audiofuse.core.storage.addresses import Address
from audiofuse.core.storage.connections import Answer, Connections, Refuses, Unanswered
from audiofuse.core.storage.objects import Page, object_info
from audiofuse.core.storage.signing import Signer

OK, PART, MISSING = 200, 206, 404
REFUSES = range(300, 500)
BUSY = {408, 429}  # among those
METADATA = "x-amz-meta-"
MAX_PAGE_BYTES = 64 * 1024**2
# As boto3: bytes are wanted as they are kept, and not as a proxy may like to compress them.
ALWAYS = "user-agent: audiofuse\r\naccept-encoding: identity\r\n"
PLAIN = "/~"  # of a key, besides letters, digits and -_. - what may be in a path as it is


class _Way(NamedTuple):
    """How the bucket is reached, once that is known."""

    connections: Connections
    signer: Signer
    path: str


class LeanBucket:
    """One bucket. Every method raises ``Unanswered`` unless all is as it should be."""

    def __init__(self, name: str, find: Callable[[], Address]) -> None:
        """Read the bucket at the address that ``find`` returns when something is first asked."""
        self._name = name
        self._find = find
        self._finding = threading.Lock()
        self._way: _Way | None = None

    def exists(self) -> None:
        """See that the bucket is there."""
        with self._ask("HEAD", ""):
            pass

    def head(self, key: str) -> ObjectInfo | None:
        """Return what the object's headers say; ``None`` if there is none, or no bucket."""
        with self._ask("HEAD", key, expected=(OK, MISSING)) as answer:
            return None if answer.status == MISSING else _described(key, answer.headers)

    def download(self, key: str, etag: str, into: IO[bytes]) -> str:
        """Write the object, if it has this etag, into a file; see ``S3Bucket``.

        Raises ``Unavailable`` if it breaks off: what is there of it is already written.
        """
        with self._ask("GET", key, more=_condition(etag)) as answer:
            found = _header(answer, "etag")
            pieces = answer.pieces()
            while piece := self._next(pieces, key):
                into.write(piece)
            return found

    def part(self, key: str, etag: str, first: int, count: int) -> bytes:
        """Return some bytes of the object, if it has this etag; see ``S3Bucket``."""
        more = f"{_condition(etag)}range: bytes={first}-{first + count - 1}\r\n"
        with self._ask("GET", key, more=more, expected=(PART,)) as answer:
            return answer.body(count)

    def _next(self, pieces: Iterator[memoryview], key: str) -> memoryview | None:
        try:
            return next(pieces, None)
        except Unanswered as error:
            raise Unavailable(f"get_object s3://{self._name}/{key}: {error}") from error

    def page(self, prefix: str, token: str | None, most: int, after: str = "") -> Page:
        """Return the next objects whose keys begin with ``prefix``, behind the key ``after``."""
        parameters = {
            "continuation-token": token,
            "encoding-type": "url",  # XML cannot hold every key
            "list-type": "2",
            "max-keys": str(most),
            "prefix": prefix,
            "start-after": None if token else after or None,
        }
        query = "&".join(
            f"{name}={quote(value, safe='~')}"
            for name, value in parameters.items()
            if value is not None
        )
        with self._ask("GET", "", query) as answer:
            return _listed(answer.body(MAX_PAGE_BYTES))

    @contextmanager
    def _ask(
        self,
        method: str,
        key: str,
        query: str = "",
        *,
        more: str = "",
        expected: tuple[int, ...] = (OK,),
    ) -> Iterator[Answer]:
        """Ask for an object, or without a key for the bucket, and lend the answer."""
        connections, signer, bucket = self._way or self._find_way()
        path = f"{bucket}/{quote(key, safe=PLAIN)}" if key else bucket or "/"
        headers = signer.headers(method, path, query)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        target = f"{path}?{query}" if query else path
        request = f"{method} {target} HTTP/1.1\r\n{lines}{ALWAYS}{more}\r\n"
        with connections.ask(request.encode(), has_body=method != "HEAD") as answer:
            if answer.status not in expected:
                refuses = answer.status in REFUSES and answer.status not in BUSY
                kind = Refuses if refuses else Unanswered
                raise kind(f"{method} s3://{self._name}/{key} is answered by {answer.status}")
            yield answer

    def _find_way(self) -> _Way:
        with self._finding:
            if self._way is None:
                address = self._find()
                self._way = _Way(address.connections(), address.signer, address.path)
            return self._way


def _condition(etag: str) -> str:
    """Return the header that asks for an object of this etag, none if that is empty."""
    if not (etag.isascii() and etag.isprintable()):
        raise Unanswered(f"no ETag that a header can hold: {etag!r}")
    return f"if-match: {etag}\r\n" if etag else ""


def _header(answer: Answer, name: str) -> str:
    try:
        return answer.headers[name]
    except KeyError as error:
        raise Refuses(f"the answer has no header {name}") from error


def _described(key: str, headers: Mapping[str, str]) -> ObjectInfo:
    try:
        return object_info(
            key,
            headers["etag"],
            int(headers["content-length"]),
            _aware(parsedate_to_datetime(headers["last-modified"])),
            {k.removeprefix(METADATA): v for k, v in headers.items() if k.startswith(METADATA)},
        )
    except (KeyError, ValueError) as error:
        raise Refuses(f"an object's headers are not understood: {error!r}") from error


def _listed(body: bytes) -> Page:
    """Read a listing; S3's namespace may be missing."""
    try:
        root = ET.fromstring(body)  # noqa: S314 - as boto3 does; expat bounds what entities grow to
        space, is_one, _ = root.tag.partition("ListBucketResult")
        if not is_one:
            return _no_page(f"it is a {root.tag}")  # has no entries, and is no empty bucket
        said = {each.tag.removeprefix(space): each.text or "" for each in root}
        unquoted = unquote_plus if said.get("EncodingType") == "url" else str
        objects = [
            _entry({each.tag: each.text or "" for each in entry}, space, unquoted)
            for entry in root.iter(f"{space}Contents")
        ]
        more = said.get("IsTruncated") == "true"
        return Page(objects, said["NextContinuationToken"] if more else None)
    except (ET.ParseError, KeyError, ValueError) as error:
        return _no_page(repr(error))


def _no_page(why: str) -> NoReturn:
    raise Refuses(f"a listing is not understood: {why}")


def _entry(said: Mapping[str, str], space: str, unquoted: Callable[[str], str]) -> ObjectInfo:
    return object_info(
        unquoted(said[f"{space}Key"]),
        said[f"{space}ETag"],
        int(said[f"{space}Size"]),
        _aware(datetime.fromisoformat(said[f"{space}LastModified"])),
    )


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"a time without its zone: {moment}")
    return moment
