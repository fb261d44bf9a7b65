"""What is asked of Qdrant often, by plain HTTP: ``qdrant_client`` takes three times as long.

It raises what the client would. Nothing is sent twice: whether a write came before one that makes
up for it, nobody could tell.

The embedded index packs vectors: as text that stands for their float32 bytes (base64) in place of
numbers, the writing and reading of which takes ten times as long. Who answers with the header
``VECTORS`` does so, and is sent them so; a Qdrant server knows nothing of it.
"""

import select
import ssl
import time
import weakref
from array import array
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from types import MappingProxyType
from typing import Annotated, Any, TypeVar
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
import numpy as np
import pydantic_core
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

GOOD = frozenset({200, 201, 202})
# A connection that was idle for longer is not used again: its server may be about to close it.
# Lowered, there are more handshakes.
IDLE_S = 5.0


# In a request: its vectors are packed, or its answer's may be. In an answer: the server can do so.
VECTORS = "x-audiofuse-vectors"
PACKED = {VECTORS: "float32"}
PLAIN: Mapping[str, str] = MappingProxyType({})
# Of a vector's numbers: about as exact as float32 is for vectors of unit length, and half as long.
DECIMALS = 8

Asked = bool | Sequence[str]  # all of it, nothing, or what is named


def packed(vector: Sequence[float]) -> bytes:
    """Return a vector as the bytes that stand for it."""
    return (vector if isinstance(vector, array) else array("f", vector)).tobytes()


def _unpacked(vector: bytes | list[float]) -> Sequence[float]:
    return array("f", vector) if isinstance(vector, bytes) else vector


class Record(BaseModel):
    """A point as it is answered, or sent with packed vectors."""

    model_config = ConfigDict(val_json_bytes="base64")
    id: str
    payload: dict[str, Any] | None = None
    vector: dict[str, Annotated[bytes | list[float], AfterValidator(_unpacked)]] | None = None


class ScoredRecord(Record):
    """A point that was found."""

    score: float


class Group(BaseModel):
    """Points that have a value in common, best first."""

    id: str | int
    hits: list[ScoredRecord]


class _Groups(BaseModel):
    groups: list[Group]


class _Grouped(BaseModel):
    result: _Groups


class _Points(BaseModel):
    points: list[ScoredRecord]


class _Answers(BaseModel):
    result: list[_Points]


class _Found(BaseModel):
    result: list[Record]


class _Done(BaseModel):
    result: dict[str, Any]


Answer = TypeVar("Answer", bound=BaseModel)


class Rest:
    """Connections to one server; as many are kept as threads have asked at once."""

    def __init__(
        self, url: str, headers: Mapping[str, str], tls: ssl.SSLContext | None, timeout_s: float
    ) -> None:
        """Connect to nothing yet; each answer must begin and go on within ``timeout_s``."""
        parts = urlsplit(url)
        assert parts.hostname
        self._address = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._headers = {**headers, "content-type": "application/json"}
        self._tls = tls
        self._timeout_s = timeout_s
        self._packs = False  # whether the server is known to
        self._idle: list[tuple[float, HTTPConnection]] = []  # since when; the last one used is last
        weakref.finalize(self, _close, self._idle)

    def upsert(self, collection: str, points: Sequence[Mapping[str, Any]]) -> None:
        """Write whole points, in the one order that all writes of a point have."""
        where = f"{quote(collection, safe='')}/points?wait=true&ordering=strong"
        form = packed if self._packs else _numbers
        sent = [
            {**each, "vector": {name: form(vector) for name, vector in each["vector"].items()}}
            for each in points
        ]
        self._ask(_Done, "PUT", where, {"points": sent}, PACKED if self._packs else {})

    def retrieve(
        self, collection: str, ids: Sequence[str], vectors: Asked, payload: Asked
    ) -> list[Record]:
        """Return the points that exist among ``ids``, as most replicas know them."""
        where = f"{quote(collection, safe='')}/points?consistency=majority"
        body = {"ids": ids, "with_payload": payload, "with_vector": vectors}
        return self._ask(_Found, "POST", where, body, PACKED).result

    def search(
        self, collection: str, asked: Sequence[models.QueryRequest]
    ) -> list[list[ScoredRecord]]:
        """Return, for each that is asked, the points nearest to a vector."""
        where = f"{quote(collection, safe='')}/points/query/batch"
        body = {"searches": [each.model_dump(mode="python", exclude_none=True) for each in asked]}
        answers = self._ask(_Answers, "POST", where, body, PACKED).result
        return [each.points for each in answers]

    def groups(self, collection: str, asked: models.QueryGroupsRequest) -> list[Group]:
        """Return the points nearest to a vector in groups."""
        where = f"{quote(collection, safe='')}/points/query/groups"
        body = asked.model_dump(mode="python", exclude_none=True)
        return self._ask(_Grouped, "POST", where, body, PACKED).result.groups

    def _ask(
        self, kind: type[Answer], method: str, where: str, body: object,
        headers: Mapping[str, str] = PLAIN,
    ) -> Answer:  # fmt: skip
        connection = self._take()
        try:
            connection.request(
                method, f"{self._prefix}/collections/{where}",
                pydantic_core.to_json(body, bytes_mode="base64"), {**self._headers, **headers},
            )  # fmt: skip
            response = connection.getresponse()
            content = response.read()
        except (OSError, HTTPException) as error:
            connection.close()
            raise ResponseHandlingException(error) from error
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._idle.append((time.monotonic(), connection))
        if response.status not in GOOD:
            told = httpx.Headers(response.getheaders())
            raise UnexpectedResponse(response.status, response.reason, content, told)
        self._packs = VECTORS in response.headers
        try:
            return kind.model_validate_json(content)
        except ValidationError as error:
            raise ResponseHandlingException(error) from error

    def _take(self) -> HTTPConnection:
        try:
            since, connection = self._idle.pop()
        except IndexError:
            return self._new()
        if time.monotonic() - since < IDLE_S and not _is_closing(connection):
            return connection
        connection.close()
        return self._new()

    def _new(self) -> HTTPConnection:
        host, port = self._address
        if self._tls:
            return HTTPSConnection(host, port, timeout=self._timeout_s, context=self._tls)
        return HTTPConnection(host, port, timeout=self._timeout_s)


def rest_of(client: QdrantClient) -> Rest | None:
    """Return a plain way to the server of a client; ``None`` without one, or behind a proxy."""
    options = client.init_options
    url = options.get("url")
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme in getproxies() and not proxy_bypass(parts.hostname or ""):
        return None
    tls = options.get("verify") or httpx.create_ssl_context() if parts.scheme == "https" else None
    key = options.get("api_key")
    return Rest(url, {"api-key": key} if key else {}, tls, options["timeout"])


def _numbers(vector: Sequence[float]) -> list[float]:
    numbers: list[float] = np.round(np.asarray(vector, np.float64), DECIMALS).tolist()
    return numbers


def _is_closing(connection: HTTPConnection) -> bool:
    """Whether the server closed a connection, or said what nobody asked for."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _close(idle: list[tuple[float, HTTPConnection]]) -> None:
    while idle:
        idle.pop()[1].close()
