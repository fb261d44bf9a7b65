"""What a store that is away, or refuses, means: later, or a verdict on one object."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.items import ObjectInfo
from audiofuse.core.settings import Settings
from audiofuse.core.storage.files import open_files
from audiofuse.core.storage.store import Store, open_store

FolderBucket = Any  # what ``conftest`` makes


def _open(store: Store, info: ObjectInfo) -> None:
    with store.open(info):
        pass


METHODS: dict[str, Callable[[Store, ObjectInfo], object]] = {
    "head": lambda store, info: store.head(info.key),
    "read": lambda store, info: store.read(info),
    "open": _open,
    "list": lambda store, _: list(store.list()),
}
SOME = ObjectInfo("rain.wav", "0" * 32, 5, 0)


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("method", METHODS)
def test_an_endpoint_that_is_down_is_unavailable(aws_settings: Settings, method: str) -> None:
    """Nobody at the address means later, whatever was asked."""
    away = aws_settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"})
    with pytest.raises(Unavailable):
        METHODS[method](open_store(away), SOME)


@pytest.mark.parametrize("method", METHODS)
def test_a_missing_bucket_is_unavailable(aws_settings: Settings, method: str) -> None:
    """A bucket that is not there is neither empty nor has its objects deleted or changed."""
    away = aws_settings.model_copy(update={"bucket": "s3://no-such-bucket"})
    with pytest.raises(Unavailable, match="no-such-bucket"):
        METHODS[method](open_store(away), SOME)


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_that_vanished_is_unavailable(folder: FolderBucket, method: str) -> None:
    """A disk that is not mounted has lost none of its sounds."""
    folder.put("rain.wav", b"x")
    info = folder.info("rain.wav")
    folder.root.rename(folder.root.parent / "elsewhere")
    with pytest.raises(Unavailable, match=str(folder.root)):
        METHODS[method](folder.store, info)


Answer = tuple[int, str, bytes]  # status, S3's word for an error, and the body of what is none
EMPTY: Answer = (200, "", b"")
LISTED = f"""<ListBucketResult><IsTruncated>false</IsTruncated><Contents>
<Key>{SOME.key}</Key><ETag>&quot;{SOME.etag}&quot;</ETag><Size>{SOME.size}</Size>
<LastModified>1970-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"""
ANSWERING = {"bucket": EMPTY, "list": (200, "", LISTED.encode())}


class Stub:
    """A bucket that refuses on demand, as no real server does; each answer is given in turn."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._answers: dict[str, list[Answer]] = {}

    def answer(self, *, length: int | None = None, **answers: Answer | list[Answer]) -> None:
        """Answer so to ``head``, ``get``, ``bucket`` and ``list``; the last answer stays."""
        self.length = length
        self._answers = {
            asked: each if isinstance(each, list) else [each] for asked, each in answers.items()
        }

    def next(self, asked: str) -> Answer:
        """Return the answer to what is asked now."""
        answers = self._answers[asked]
        return answers.pop(0) if len(answers) > 1 else answers[0]

    @contextmanager
    def running(self) -> Iterator["Stub"]:
        """Serve."""
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, word, body = stub.next(_asked(self.command, self.path))
                body = body or (f"<Error><Code>{word}</Code></Error>".encode() if word else b"")
                self.send_response(status)
                self.send_header("Content-Length", str(stub.length or len(body)))
                self.send_header("ETag", f'"{SOME.etag}"')
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815 - the name is the base class's

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            self.url = f"http://127.0.0.1:{server.server_address[1]}"
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()

    @property
    def settings(self) -> Settings:
        """Settings for this bucket."""
        return self._settings.model_copy(update={"s3_endpoint_url": self.url})

    @property
    def store(self) -> Store:
        """The store that reads from it."""
        return open_store(self.settings)


def _asked(command: str, path: str) -> str:
    if "list-type" in path:
        return "list"
    if path.strip("/").count("/"):
        return command.lower()
    return "bucket"


@pytest.fixture
def stub(no_pauses: None) -> Iterator[Stub]:
    """Run the stub."""
    del no_pauses
    settings = Settings(bucket="s3://sounds", s3_access_key_id="a", s3_secret_access_key="b")
    with Stub(settings).running() as stub:
        yield stub


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("status", "word"),
    [
        (400, "AuthorizationHeaderMalformed"),
        (400, "ExpiredToken"),
        (400, "InvalidRequest"),
        (401, "Unauthorized"),
        (403, "AccessDenied"),
        (403, "InvalidAccessKeyId"),
        (403, "RequestTimeTooSkewed"),
        (403, "SignatureDoesNotMatch"),
        (408, "RequestTimeout"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "SlowDown"),
        (507, "InsufficientStorage"),
    ],
)
def test_what_is_refused_to_all_waits(stub: Stub, status: int, word: str, method: str) -> None:
    """No access and no service mean later; no object pays for them, nor is it taken for deleted."""
    answer = (status, word, b"")
    stub.answer(head=answer, get=answer, bucket=answer, list=answer)
    with pytest.raises(Unavailable, match=r"sounds/(rain\.wav)?"):
        METHODS[method](stub.store, SOME)


@pytest.mark.parametrize(
    ("status", "word", "advice"),
    [
        (400, "InvalidRequest", "SSE-C"),
        (400, "KMS.DisabledException", "enable its key"),
        (400, "KMS.KMSInvalidStateException", "enable its key"),
        (400, "KMS.NotFoundException", "enable its key"),
        (403, "AccessDenied", "policy"),
        (403, "InvalidObjectState", "restore"),
        (403, "KMS.AccessDeniedException", "enable its key"),
    ],
)
def test_what_is_refused_of_one_object_is_unreadable(
    stub: Stub, status: int, word: str, advice: str
) -> None:
    """While the bucket answers, the refusal of one object's bytes is a verdict, with what to do."""
    stub.answer(get=(status, word, b""), **ANSWERING)
    for method in ("read", "open"):
        with pytest.raises(Rejected, match=advice) as raised:
            METHODS[method](stub.store, SOME)
        assert raised.value.reason is Reason.UNREADABLE
        assert word in raised.value.detail


@pytest.mark.parametrize("status", [400, 403])
def test_an_object_whose_head_is_refused_is_seen_in_the_listing(stub: Stub, status: int) -> None:
    """Its state is known, so that the verdict on it is; of one that is not listed there is none."""
    stub.answer(head=(status, "", b""), **ANSWERING)
    assert stub.store.head(SOME.key) == SOME
    assert stub.store.head("rain.wav.json") is None


@pytest.mark.parametrize(
    ("status", "word"),
    [(400, "KMS.ThrottlingException"), (500, "KMS.InternalException"), (503, "SlowDown")],
)
def test_an_object_that_is_busy_waits(stub: Stub, status: int, word: str) -> None:
    """Throttling, met by one object while the bucket answers, is no verdict on it."""
    stub.answer(get=(status, word, b""), **ANSWERING)
    with pytest.raises(Unavailable, match=word):
        stub.store.read(SOME)


def test_a_refusal_that_has_passed_is_none(stub: Stub) -> None:
    """A key that is rotated between two requests costs no object anything."""
    stub.answer(get=[(403, "AccessDenied", b""), (200, "", b"sound")], **ANSWERING)
    assert stub.store.read(SOME) == b"sound"


def test_what_is_no_object_of_users_is_never_judged(stub: Stub) -> None:
    """The product's own files are away if they are refused, whatever the bucket says."""
    stub.answer(get=(403, "AccessDenied", b""), **ANSWERING)
    files = open_files("s3://sounds/encoders", stub.settings)
    with pytest.raises(Unavailable, match="encoders/live"):
        files.get("live.json")


def test_a_download_that_breaks_off_is_unavailable(stub: Stub) -> None:
    """Half a body is not taken for the object."""
    stub.answer(length=100, get=(200, "", b"half"))
    with pytest.raises(Unavailable, match=r"rain\.wav"):
        stub.store.read(SOME)


@pytest.mark.parametrize("method", METHODS)
def test_a_handshake_that_is_lost_is_unavailable(stub: Stub, method: str) -> None:
    """A server that does not speak TLS where it is asked to is away."""
    url = stub.url.replace("http:", "https:")
    with pytest.raises(Unavailable, match="sounds"):
        METHODS[method](open_store(stub.settings.model_copy(update={"s3_endpoint_url": url})), SOME)
