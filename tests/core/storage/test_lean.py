"""Asking S3 without boto3: what is sent is what boto3 sends, and what is odd is left to boto3."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from servers import Say, Wire

from audiofuse.core.errors import AudiofuseError, Unavailable
from audiofuse.core.items import ObjectInfo
from audiofuse.core.settings import environment
from audiofuse.core.storage import connections
from audiofuse.core.storage.connections import Unanswered
from audiofuse.core.storage.s3 import REST_S, S3Bucket, S3Store

HEAD = (
    b'HTTP/1.1 200 OK\r\nETag: "0123"\r\nLast-Modified: Mon, 30 Nov 2026 04:05:44 GMT\r\n'
    b"Content-Length: 5\r\nX-Amz-Meta-Title: Rain\r\n"
)
OBJECT = HEAD + b"\r\n"
INFO = ObjectInfo("rain.wav", "0123", 5, 1796011544000, {"title": "Rain"})
MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
BY_BOTO3 = re.compile(rb"user-agent: Boto3", re.IGNORECASE)
ASKED = re.compile(rb"(?:if-match|range): (\S+)", re.IGNORECASE)
Run = Callable[[Say], Wire]


def _target(request: bytes) -> tuple[bytes, bytes, list[bytes], list[bytes]]:
    """Return method, path, parameters, and which object and what of it is meant."""
    method, target, _ = request.split(b"\r\n")[0].split(b" ")
    path, _, query = target.partition(b"?")
    return method, path, sorted(query.split(b"&")), re.findall(ASKED, request)


@pytest.mark.parametrize(
    "key",
    [
        "rain.wav", "a//b.wav", "/leading.wav", "//", "./b.wav", "a/../b.wav", "..", "b.wav/",
        " b.wav ", "a+b.wav", "a%20b.wav", "100%.wav", "räin 雨😀.wav", "new\nline\r\x00\x7f.wav",
        "a&b=c?d#e.wav", "back\\slash.wav", "(1)[2]{3}^`$,;@!'*~_-.:<>|\".wav", "\u00ad\u200d",
    ],
)  # fmt: skip
def test_a_key_is_sent_as_boto3_sends_it(wire: Run, key: str) -> None:
    """Path, query and condition are the same to the byte, whatever the key is made of."""
    server = wire(lambda _: MISSING)
    bucket = S3Bucket("sounds", server.settings)
    asks: list[Callable[[Any], object]] = [
        lambda each: each.head(key),
        lambda each: each.download(key, "0123", BytesIO()),
        lambda each: each.part(key, "0123", 5, 10),
        lambda each: each.page(key, None, 1000),
        lambda each: each.page(key, key, 7),
        lambda each: each.exists(),
    ]
    for ask in asks:
        server.requests.clear()
        for way in (bucket._lean, bucket.boto):
            with suppress(Unanswered, AudiofuseError):
                ask(way)
        lean, boto3 = server.requests
        assert not BY_BOTO3.search(lean)
        assert BY_BOTO3.search(boto3)
        assert _target(lean) == _target(boto3)


@pytest.mark.parametrize(
    "headers",
    [
        b"x-amz-meta-a: 1\r\nX-AMZ-META-B_c.D: 2\r\nx-amz-metadata: none\r\n",
        b"x-amz-meta-a:\r\nx-amz-meta-b:no space\r\nx-amz-meta-c: a: b\r\n",
        b"x-amz-meta-a: one\r\nX-Amz-Meta-A: two\r\n",
        "x-amz-meta-a: Türe 雨\r\n".encode(),
        "x-amz-meta-a: Türe\r\n".encode("latin-1"),
        b"x-amz-meta-a: =?UTF-8?B?VMO8cmU=?= =?UTF-8?Q?_=E9=9B=A8?=\r\n",
        b"x-amz-meta-a: %C3%BC+%20\r\n",
        b"x-amz-meta-: nameless\r\n",
        b'etag: "second"\r\n',
    ],
)
def test_headers_are_read_as_boto3_reads_them(wire: Run, headers: bytes) -> None:
    """Names, values and their encodings come out the same, odd ones too."""
    server = wire(lambda _: HEAD + headers + b"\r\n")
    bucket = S3Bucket("sounds", server.settings)
    assert bucket._lean.head("rain.wav") == bucket.boto.head("rain.wav")


ODD = {
    "is busy": b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n",
    "has an error": b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "hangs up": None,
    "says nothing": b"",
    "stops in its head": HEAD + b"X-Am",
    "folds a header": HEAD + b"X-Amz-Meta-B: one\r\n two\r\n\r\n",
    "has a bare line feed": HEAD + b"X-Amz-Meta-B: one\n\r\n",
    "speaks something else": b"+OK ready\r\n\r\n",
    "speaks HTTP/2": b"HTTP/2 200\r\n\r\n",
    "speaks first of something else": b"HTTP/1.1 103 Early Hints\r\n\r\n" + OBJECT,
    "has no etag": OBJECT.replace(b"ETag", b"Other"),
    "has no time": OBJECT.replace(b"Mon, 30 Nov", b"yesterday"),
    "has no size": OBJECT.replace(b": 5", b": five"),
    "has too many headers": HEAD + b"A: b\r\n" * 201 + b"\r\n",
    "has an endless header": HEAD + b"A: " + b"b" * 70_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_is_asked_of_boto3(
    wire: Run, odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer out of the ordinary, or none, costs one more request and changes no result."""
    monkeypatch.setattr(connections, "READ_S", 0.3)
    server = wire(lambda request: OBJECT if BY_BOTO3.search(request) else ODD[odd])
    assert S3Bucket("sounds", server.settings).head("rain.wav") == INFO
    lean, boto3 = server.requests
    assert not BY_BOTO3.search(lean)
    assert BY_BOTO3.search(boto3)


def test_what_passes_is_not_held_against_the_server(wire: Run) -> None:
    """After a hiccup boto3 is left alone again, at once."""
    answers = [OBJECT, ODD["is busy"], OBJECT, OBJECT, None, OBJECT, OBJECT]
    server = wire(lambda _: answers.pop(0))
    bucket = S3Bucket("sounds", server.settings)
    assert [bucket.head("rain.wav") for _ in range(5)] == [INFO] * 5
    assert [bool(BY_BOTO3.search(each)) for each in server.requests] == [
        False, False, True, False, False, False, False,
    ]  # fmt: skip


def test_boto3_repeats_until_it_gives_up(wire: Run) -> None:
    """A server that stays busy is asked four times and no more, then it is away."""
    server = wire(lambda _: ODD["is busy"])
    with pytest.raises(Unavailable, match=r"503.*sounds/rain\.wav|sounds/rain\.wav.*503"):
        S3Bucket("sounds", server.settings).head("rain.wav")
    assert len(server.requests) == 4


def test_where_boto3_knows_better_it_alone_is_asked_for_a_while(
    wire: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """Another region, or a server that wants something else, costs a useless request seldom."""
    refusal = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
    server = wire(lambda request: OBJECT if BY_BOTO3.search(request) else refusal)
    bucket = S3Bucket("sounds", server.settings)
    for _ in range(3):
        assert bucket.head("rain.wav") == INFO
    assert [bool(BY_BOTO3.search(each)) for each in server.requests] == [False, True, True, True]
    assert "s3://sounds is asked by boto3" in caplog.text
    bucket._rests_until -= REST_S
    bucket.head("rain.wav")
    assert [bool(BY_BOTO3.search(each)) for each in server.requests[4:]] == [False, True]
    assert len(caplog.records) == 1


def test_one_connection_serves_many_requests(wire: Run) -> None:
    """Looking, reading and listing in turn need one handshake."""
    listing = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%s\r\n0\r\n\r\n"

    def say(request: bytes) -> bytes:
        method, path, _, _ = _target(request)
        if path == b"/sounds":
            return chunked % (len(listing), listing)
        return OBJECT + (b"sound" if method == b"GET" else b"")

    server = wire(say)
    store = S3Store(S3Bucket("sounds", server.settings))
    for _ in range(3):
        assert store.head("rain.wav") == INFO
        assert store.read(INFO) == b"sound"
        assert list(store.list()) == []
    assert server.connections == 1


def test_threads_get_their_own_answers(wire: Run) -> None:
    """Many threads at once share connections, one at a time each, and never an answer."""

    def say(request: bytes) -> bytes:
        return HEAD + b"X-Amz-Meta-Path: " + _target(request)[1] + b"\r\n\r\n"

    server = wire(say)
    bucket = S3Bucket("sounds", server.settings)

    def look(number: int) -> bool:
        info = bucket.head(f"{number}.wav")
        return info is not None and info.user_metadata["path"] == f"/sounds/{number}.wav"

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(look, range(400)))
    assert server.connections <= 8
    assert len(server.requests) == 400


def test_a_connection_that_was_closed_meanwhile_is_replaced(
    wire: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs up on who is idle costs a handshake, and so does who is idle for long."""
    server = wire(lambda _: OBJECT)
    bucket = S3Bucket("sounds", server.settings)
    server.hangs_up = True
    assert [bucket.head("rain.wav") for _ in range(3)] == [INFO] * 3
    assert server.connections == 3
    server.hangs_up = False
    monkeypatch.setattr(connections, "IDLE_S", 0.0)
    assert [bucket.head("rain.wav") for _ in range(2)] == [INFO] * 2
    assert server.connections == 5
    assert not any(map(BY_BOTO3.search, server.requests))


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 100\r\n\r\nhalf",
        b"Transfer-Encoding: chunked\r\n\r\n9\r\nhalf",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nhalf\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-4\r\nhalf\r\n0\r\n\r\n",
    ],
)
def test_half_a_body_is_no_object(wire: Run, body: bytes) -> None:
    """What breaks off, or is framed wrongly, is told under the object's name, and is no sound."""
    server = wire(lambda _: b'HTTP/1.1 200 OK\r\nETag: "0123"\r\n' + body)
    server.hangs_up = True
    with pytest.raises(Unavailable, match=r"sounds/rain\.wav"):
        S3Store(S3Bucket("sounds", server.settings)).read(INFO)


def test_a_server_that_gives_no_ranges_is_told(wire: Run) -> None:
    """A whole object in place of some bytes of it is never taken for them."""
    server = wire(lambda _: OBJECT + b"sound")
    with pytest.raises(Unavailable, match=r"sounds/rain\.wav: it gives no ranges"):
        S3Store(S3Bucket("sounds", server.settings)).part(INFO, 1, 2)


def test_an_etag_that_no_header_can_hold_is_not_sent(wire: Run) -> None:
    """What a listing calls an etag adds no header of its own to a request."""
    server = wire(lambda _: OBJECT + b"sound")
    with pytest.raises(Unavailable):
        S3Bucket("sounds", server.settings).download("rain.wav", "1\r\nx-a: b", BytesIO())
    assert not any(b"x-a" in each for each in server.requests)


def test_boto3_is_not_loaded_for_what_does_without(wire: Run) -> None:
    """With an endpoint and keys a process that looks, reads and lists stays small."""
    server = wire(lambda _: MISSING)
    server.say = lambda request: OBJECT if b"HEAD" in request else OBJECT + b"sound"
    script = (
        "import sys\n"
        "from audiofuse.core.settings import Settings\n"
        "from audiofuse.core.storage.store import open_store\n"
        "store = open_store(Settings())\n"
        "assert store.read(store.head('rain.wav')) == b'sound'\n"
        "assert not {'boto3', 'botocore', 'urllib3'} & set(sys.modules), sys.modules\n"
    )
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    values = kept | environment(server.settings) | {"HOME": "/nowhere"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=values, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(server.requests) == 2
