"""Fixtures: an index over each kind of Qdrant there is.

A server's address may be given in ``TEST_QDRANT_URL``, and its key in ``TEST_QDRANT_API_KEY``: then
what holds for the embedded engine is tried on that server, too. Its collections called ``test-...``
are deleted.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from uuid import uuid4

import pytest
from fastapi import FastAPI
from qdrant_client import QdrantClient

from audiofuse.core.index.embedded import create_app
from audiofuse.core.index.engine import Engine
from audiofuse.core.index.index import Index, connect, connect_embedded

API_KEY = "a key of the test"
SERVER_URL = os.environ.get("TEST_QDRANT_URL")
SERVER_KEY = os.environ.get("TEST_QDRANT_API_KEY")
SPEAKING_REST = ["engine", "server"] if SERVER_URL else ["engine"]


@pytest.fixture(scope="module")
def embedded_url(
    serving: Callable[[FastAPI], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Serve an embedded index over HTTP, as the local deployment does."""
    with (
        closing(Engine(tmp_path_factory.mktemp("qdrant"))) as engine,
        serving(create_app(engine, API_KEY)) as url,
    ):
        yield url


def _client(kind: str, request: pytest.FixtureRequest) -> QdrantClient:
    if kind == "memory":
        return connect_embedded()
    if kind == "server":
        assert SERVER_URL
        return connect(SERVER_URL, SERVER_KEY)
    return connect(request.getfixturevalue("embedded_url"), API_KEY)


@pytest.fixture(params=["memory", *SPEAKING_REST])
def client(request: pytest.FixtureRequest) -> Iterator[QdrantClient]:
    """Return each kind of client that an index may be given."""
    with closing(_client(request.param, request)) as client:
        yield client


@pytest.fixture
def processes(
    client: QdrantClient, request: pytest.FixtureRequest
) -> Iterator[Callable[[int], list[QdrantClient]]]:
    """Return what gives the clients of so many processes: one each, where it speaks over HTTP."""
    kind = request.node.callspec.params["client"]
    with ExitStack() as stack:

        def clients(number: int) -> list[QdrantClient]:
            if kind == "memory":
                return [client] * number
            return [stack.enter_context(closing(_client(kind, request))) for _ in range(number)]

        yield clients


@pytest.fixture(params=SPEAKING_REST)
def rest(request: pytest.FixtureRequest) -> Iterator[QdrantClient]:
    """Return a client of each kind of Qdrant that is spoken to over HTTP."""
    with closing(_client(request.param, request)) as client:
        yield client


@pytest.fixture
def alias(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return an alias that no other test uses; a server's collections go with the test."""
    alias = f"test-{uuid4().hex[:8]}"
    yield alias
    for name in {"client", "rest"} & set(request.fixturenames):
        client: QdrantClient = request.getfixturevalue(name)
        for each in client.get_collections().collections:
            if each.name.startswith(alias):
                client.delete_collection(each.name)


@pytest.fixture
def index(client: QdrantClient, alias: str) -> Index:
    """Return an index under an alias that no other test uses."""
    return Index(client, alias)
