"""The plain way to a server: connections are kept, and nothing is sent twice."""

import json
import threading
from array import array
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from qdrant_client import QdrantClient

from audiofuse.core.errors import Unavailable
from audiofuse.core.index.index import Generation, Index, Nearest, Point, connect
from audiofuse.core.index.rest import rest_of

ID = "8c3b2f6e-0d4a-4b5e-9f3e-6a1c2d3e4f50"
GENERATION = Generation("audiofuse-a/b", "b")
ANSWER = {"result": [{"id": ID, "payload": {"key": "rain.wav"}, "vector": {"audio": [1.0]}}]}


class Sizes:
    """A very small encoder's widths."""

    dim, audio_dim = 4, 3


class Server(ThreadingHTTPServer):
    """Answers every request alike, and remembers them."""

    block_on_close = False
    hangs_up = False  # after each answer, without having said so
    answers = True
    packs = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.connections: list[threading.Event] = []  # each is set once it is closed
        self.requests: list[tuple[str, str, str | None]] = []
        self.written: list[Any] = []  # bodies of what is put, and the header of packed vectors
        self.url = f"http://127.0.0.1:{self.server_port}/behind/"


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        """Count it."""
        super().setup()
        self.closed = threading.Event()
        self.server.connections.append(self.closed)

    def finish(self) -> None:
        """Tell that it is closed."""
        super().finish()
        self.connection.close()
        self.closed.set()

    def do_POST(self) -> None:
        """Answer, or hang up."""
        self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.command, self.path, self.headers["api-key"]))
        self.close_connection = self.server.hangs_up or not self.server.answers
        if self.server.answers:
            content = json.dumps(ANSWER).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            if self.server.packs:
                self.send_header("x-audiofuse-vectors", "float32")
            self.end_headers()
            self.wfile.write(content)

    def do_PUT(self) -> None:
        """Note it, and answer."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.written.append((body["points"], self.headers["x-audiofuse-vectors"]))
        content = b'{"result": {}}'
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    """Run it."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def index(server: Server) -> Iterator[Index]:
    """Return an index on it."""
    client = connect(server.url, "a key")
    yield Index(client, "audiofuse")
    client.close()


def test_a_connection_is_kept(server: Server, index: Index) -> None:
    """What one thread asks in turn goes the same way, below the server's own path, with its key."""
    for _ in range(3):
        assert index.get(GENERATION, [ID])[ID].payload == {"key": "rain.wav"}
    assert len(server.connections) == 1
    where = "/behind/collections/audiofuse-a%2Fb/points?consistency=majority"
    assert server.requests == [("POST", where, "a key")] * 3


def test_a_connection_that_was_closed_is_not_used(server: Server, index: Index) -> None:
    """A server may close what is idle without a word; no call pays for that, none is repeated."""
    server.hangs_up = True
    for number in range(3):
        assert ID in index.get(GENERATION, [ID])
        assert server.connections[number].wait(30)
    assert len(server.requests) == 3


def test_what_is_not_answered_is_not_sent_again(server: Server, index: Index) -> None:
    """Whether it was done is unknown: whoever asked decides, not the way."""
    assert ID in index.get(GENERATION, [ID])
    server.answers = False
    with pytest.raises(Unavailable, match="does not answer"):
        index.get(GENERATION, [ID])
    assert len(server.requests) == 2


def test_vectors_come_as_they_are(index: Index) -> None:
    """A point has what was answered of it, and nothing else."""
    (point,) = index.get(GENERATION, [ID], vectors=True).values()
    assert list(point.audio) == [1.0]
    assert list(point.item) == []


@pytest.mark.parametrize(("besides", "plain"), [("", False), ("127.0.0.1", True)])
def test_a_proxy_is_the_clients_business(
    server: Server, besides: str, *, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a proxy is set for the server, the plain way would go around it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", besides)
    client = connect(server.url)
    assert (rest_of(client) is not None) is plain
    client.close()


@pytest.mark.parametrize("packs", [False, True])
def test_vectors_are_packed_for_whoever_says_that_it_knows(
    server: Server, index: Index, *, packs: bool
) -> None:
    """A Qdrant server is sent numbers, whatever is asked before; the embedded index, text."""
    server.packs = packs
    index.get(GENERATION, [ID])
    index.upsert(GENERATION, [Point(ID, {}, array("f", [0.25, -1]), (2.0,))])
    (((point,), told),) = server.written
    numbers, text = (
        {"item": [0.25, -1.0], "audio": [2.0]},
        {"item": "AACAPgAAgL8=", "audio": "AAAAQA=="},
    )
    assert (point["vector"], told) == ((text, "float32") if packs else (numbers, None))


def test_the_embedded_index_keeps_packed_vectors_to_the_last_bit(
    rest: QdrantClient, alias: str
) -> None:
    """What is written packed is read as it was, packed or not, by us and by any client."""
    index = Index(rest, alias)
    generation = index.create("late-aaa", Sizes())
    vectors = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [str(UUID(int=number)) for number in range(3)]
    points = [
        Point(id_, {"n": 1}, row.tolist(), row[:3].tolist())
        for id_, row in zip(ids, vectors, strict=True)
    ]
    for _ in range(2):  # the first time nothing is known of the other side
        index.upsert(generation, points)
        found = index.get(generation, ids, vectors=True)
        assert [list(found[id_].audio) for id_ in ids] == [list(each.audio) for each in points]
        assert np.allclose([found[id_].item for id_ in ids], vectors, atol=1e-6)
    ((hit,),) = index.search(generation, [Nearest(points[1].item, 1, vectors=("audio",))])
    assert (hit.id, hit.audio) == (ids[1], array("f", points[1].audio))  # it came packed
    moments = [replace(each, payload={"item": "long"}) for each in points]
    index.upsert(generation.moments, moments)
    asked = Nearest(points[1].item, 1, vectors=("audio",))
    (nearest, *_) = index.nearest_moments(generation, asked, 3)["long"]
    assert (nearest.id, list(nearest.audio)) == (ids[1], list(points[1].audio))
    (plain,) = rest.retrieve(generation.collection, ids[:1], with_vectors=["audio"])
    assert plain.vector == {"audio": pytest.approx(points[0].audio)}
