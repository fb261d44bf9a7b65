"""Whose fault a refusal is: a stub answers every status in turn, which no real server would."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from uuid import uuid4

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from qdrant_client.http.exceptions import UnexpectedResponse

from audiofuse.core.batcher import Batcher, _Asked
from audiofuse.core.errors import Unavailable
from audiofuse.core.index.index import (
    Generation,
    GenerationGone,
    Index,
    Nearest,
    Point,
    connect,
)

GENERATION = Generation("audiofuse-late-aaa", "late-aaa")
STRICT = "Bad request: Limit exceeded 2 > 1 for upsert. Help: Reduce the size of the batch"
DIMENSION = "Wrong input: Vector dimension error: expected dim: 4, got 3"


class Sizes:
    """An encoder's sizes."""

    dim, audio_dim = 4, 3


class Stub:
    """A server that answers all alike, by what its body weighs."""

    def __init__(self) -> None:
        self.url = ""
        self.status, self.headers = 200, dict[str, str]()
        self.text = "no"
        self.refuses: Callable[[bytes], bool] = lambda _: True
        self.bodies: list[bytes] = []

    async def answer(self, request: Request) -> JSONResponse:
        """Refuse, or say that it is done."""
        body = await request.body()
        self.bodies.append(body)
        if self.refuses(body):
            content = {"status": {"error": self.text}, "time": 0.0}
            return JSONResponse(content, self.status, self.headers)
        done = {"operation_id": 0, "status": "completed"}
        return JSONResponse({"result": done, "status": "ok", "time": 0.0})


@pytest.fixture
def stub(serving: Callable[[FastAPI], AbstractContextManager[str]]) -> Iterator[Stub]:
    """Run the stub."""
    stub = Stub()
    app = FastAPI()
    app.add_api_route("/{path:path}", stub.answer, methods=["GET", "PUT", "POST", "DELETE"])
    with serving(app) as stub.url:
        yield stub


@pytest.fixture
def index(stub: Stub) -> Iterator[Index]:
    """Return an index on the stub."""
    client = connect(stub.url, "a key")
    yield Index(client, "audiofuse")
    client.close()


def _point() -> Point:
    return Point(str(uuid4()), {"key": "rain.wav"}, (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0))


CALLS: dict[str, Callable[[Index], object]] = {
    "create": lambda index: index.create("late-aaa", Sizes()),
    "promote": lambda index: index.promote(GENERATION),
    "drop": lambda index: index.drop(GENERATION),
    "generations": lambda index: index.generations(),
    "health": lambda index: index.health(GENERATION),
    "live": lambda index: index.live(),
    "upsert": lambda index: index.upsert(GENERATION, [_point()]),
    "upsert of many": lambda index: index.upsert(GENERATION, [_point(), _point()]),
    "remove": lambda index: index.remove(GENERATION, ["a"]),
    "get": lambda index: index.get(GENERATION, ["a", "b"]),
    "search": lambda index: index.search(GENERATION, [Nearest([1.0, 0, 0, 0], 1)]),
    "count": lambda index: index.count(GENERATION),
    "scroll": lambda index: list(index.scroll(GENERATION, ["key"])),
}


@pytest.mark.parametrize(
    ("status", "headers", "advice"),
    [
        (301, {}, "log"),
        (401, {}, "AUDIOFUSE_QDRANT_API_KEY"),
        (403, {}, "locked"),
        (404, {}, "AUDIOFUSE_QDRANT_URL"),
        (405, {}, "log"),
        (408, {}, "load"),
        (409, {}, "log"),
        (429, {}, "rate limit"),
        (429, {"Retry-After": "7"}, "rate limit"),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "rate limit"),
        (500, {}, "log"),
        (502, {}, "log"),
        (503, {}, "log"),
        (504, {}, "log"),
        (507, {}, "disk"),
    ],
)
def test_what_names_no_point_waits(
    stub: Stub, index: Index, status: int, headers: dict[str, str], advice: str
) -> None:
    """Whatever is asked, a refusal for another reason than a point says what to do, and waits."""
    stub.status, stub.headers = status, headers
    for name, call in CALLS.items():
        with pytest.raises(Unavailable, match=advice) as raised:
            call(index)
        assert stub.url in str(raised.value), name


@pytest.mark.parametrize("name", ["upsert", "upsert of many", "remove", "get", "search", "scroll"])
def test_a_collection_that_is_gone_is_told_as_such(stub: Stub, index: Index, name: str) -> None:
    """A 404 that names the collection is about it, not about the address."""
    stub.status, stub.text = 404, f"Not found: Collection `{GENERATION.collection}` doesn't exist!"
    with pytest.raises(GenerationGone, match=GENERATION.collection):
        CALLS[name](index)


def _together(index: Index, points: list[Point]) -> list[_Asked[Point, None]]:
    """Have points written as a worker does what its threads ask for at once."""

    def upsert(points: list[Point]) -> list[None]:
        index.upsert(GENERATION, points)
        return [None] * len(points)

    asked = [_Asked[Point, None](point) for point in points]
    Batcher(upsert, 10)._ask(asked)
    return asked


@pytest.mark.parametrize("status", [400, 413, 422])
def test_only_the_guilty_point_is_refused(stub: Stub, index: Index, status: int) -> None:
    """Of many that are refused together each is sent alone; the one at fault keeps its refusal."""
    guilty, others = _point(), [_point() for _ in range(3)]
    stub.status, stub.text = status, DIMENSION
    stub.refuses = lambda body: guilty.id.encode() in body

    asked = _together(index, [*others, guilty])
    assert [each.error for each in asked[:-1]] == [None] * 3
    error = asked[-1].error
    assert isinstance(error, UnexpectedResponse)
    assert error.status_code == status


@pytest.mark.parametrize(("status", "text"), [(400, STRICT), (413, "Payload too large")])
def test_too_many_at_once_are_sent_one_by_one(
    stub: Stub, index: Index, status: int, text: str
) -> None:
    """Limits on what is sent together cost no point anything."""
    stub.status, stub.text = status, text
    stub.refuses = lambda body: len(json.loads(body)["points"]) > 1
    asked = _together(index, [_point() for _ in range(3)])
    assert [each.error for each in asked] == [None] * 3
    assert len(stub.bodies) == 4


def test_strict_mode_is_the_servers_limit(stub: Stub, index: Index) -> None:
    """What strict mode refuses of a single point waits until its limits are widened."""
    stub.status, stub.text = 400, STRICT
    with pytest.raises(Unavailable, match="strict mode"):
        index.upsert(GENERATION, [_point()])


def test_an_answer_that_is_none_of_qdrants_waits(stub: Stub, index: Index) -> None:
    """What a proxy says with status 200 is no answer."""
    stub.refuses = lambda _: False
    with pytest.raises(Unavailable, match="does not answer"):
        index.live()


def test_an_absent_server_is_unavailable() -> None:
    """Nobody listening is a reason to try later."""
    with pytest.raises(Unavailable, match="does not answer"):
        Index(connect("http://127.0.0.1:1"), "audiofuse").live()


def test_a_handshake_that_is_lost_is_unavailable(stub: Stub) -> None:
    """A server that does not speak TLS where it is asked to is away."""
    client = connect(stub.url.replace("http:", "https:"))
    with pytest.raises(Unavailable, match="does not answer"):
        Index(client, "audiofuse").live()
    client.close()


@pytest.mark.parametrize("key", ["wrong", None])
def test_a_wrong_key_is_told_with_the_setting(embedded_url: str, key: str | None) -> None:
    """Whoever lacks the key of the embedded index hears 401, as from a server."""
    with pytest.raises(Unavailable, match=r"401: .*AUDIOFUSE_QDRANT_API_KEY"):
        Index(connect(embedded_url, key), "audiofuse").live()
