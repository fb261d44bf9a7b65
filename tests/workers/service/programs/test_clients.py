"""Other programs: the clients, what a notebook shows, and the assistant's tools by MCP's client."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiopenapi3
import anyio
import pytest
from aiopenapi3.errors import HTTPClientError
from mcp import StdioServerParameters
from mcp.client.client import Client as McpClient
from mcp.client.stdio import stdio_client

import audiofuse
from audiofuse.core.errors import ConfigurationError, NotFound, QueryError, Unavailable
from audiofuse.core.search import labels
from audiofuse.core.search.labels import MOST_LABELS
from audiofuse.workers.deployment.local import free_port
from audiofuse.workers.programs.client import AsyncClient, Client
from audiofuse.workers.programs.hits import Sound, Sounds

KEY = "k" * 16
NOBODY = "00000000-0000-0000-0000-000000000000"
GONG = "music/gong.ogg"


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """Return a client that may ask."""
    with Client(url, KEY) as client:
        yield client


def test_a_program_finds_and_hears(client: Client, bucket: Path) -> None:
    """Hits, one item, what is like it, pages, facets, and the sound's own bytes."""
    hit, *_ = client.search("a gong", label=["Gong"], limit=3)
    assert (hit.key, hit.words) == (GONG, hit.payload["title"])
    assert hit.audio is not None
    assert hit.metadata is not None
    assert hit.audio + hit.metadata == pytest.approx(hit.score)
    assert client.item(hit.id).key == GONG
    assert GONG not in [each.key for each in client.similar(hit.id)]
    assert client.read(hit) == (bucket / GONG).read_bytes()
    page = client.items(sort="longest", limit=3)
    rest = client.items(sort="longest", limit=3, after=page.following)
    assert (page.count, len(page.sounds), len(rest.sounds), rest.following) == (4, 3, 1, "")
    assert client.facets(facet="labels")["items"] == 4


def test_an_event_loop_gets_the_same(
    client: Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of the one client is a call of the other, awaited."""
    monkeypatch.setattr(labels, "NEAR", -1.0)  # a tiny encoder has nothing near
    hit, *_ = client.search("a gong", label=["Gong"])
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("search", ("a gong",), {"limit": 2}), ("similar", (hit.id,), {"limit": 2}),
        ("items", (), {"limit": 2}), ("facets", (), {}),
        ("labels", (hit.id,), {}),
    ]  # fmt: skip

    async def run() -> list[Any]:
        async with AsyncClient(url, KEY) as awaited:
            item = await awaited.item(hit.id)
            assert await awaited.read(item) == client.read(hit)
            return [await getattr(awaited, name)(*given, **how) for name, given, how in calls]

    def stable(answer: Any) -> Any:
        found = getattr(answer, "sounds", answer)
        return [each.key for each in found] if isinstance(found, Sounds) else found

    asked = [getattr(client, name)(*given, **how) for name, given, how in calls]
    assert list(map(stable, anyio.run(run))) == list(map(stable, asked))
    assert len(asked[-1]) == MOST_LABELS


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda client: client.search("?!"), QueryError),
        (lambda client: client.search("a gong", limit=0), QueryError),
        (lambda client: client.item(NOBODY), NotFound),
        (lambda client: client.read(Sound("", "", {})), ConfigurationError),
    ],
)
def test_what_cannot_be_answered_says_whose_fault_it_is(
    client: Client, ask: Callable[[Client], Any], error: type[Exception]
) -> None:
    """The question's, the key's, or nobody's who answers."""
    with pytest.raises(error):
        ask(client)


def test_a_wrong_key_and_an_absent_service_are_told_apart(url: str) -> None:
    """The one is to be mended, the other may come back."""
    with Client(url, "wrong" * 4) as wrong, pytest.raises(ConfigurationError, match="API key"):
        wrong.search("a gong")
    nowhere = f"http://127.0.0.1:{free_port()}"
    with Client(nowhere) as asking, pytest.raises(Unavailable, match="no query service answers"):
        asking.search("a gong")


def test_the_clients_are_public_names() -> None:
    """They are found where every other program looks."""
    assert (audiofuse.Client, audiofuse.AsyncClient) == (Client, AsyncClient)


def test_a_notebook_shows_players_and_no_markup_of_others() -> None:
    """Each hit has its row; what a sidecar says is text, whatever it says."""
    evil = Sound("1", "<b>.wav", {"title": "<script>", "duration_s": 5.0}, 'http://a/?x="y"', 0.5)
    shown = Sounds([evil, Sound("2", "b.wav", {"keywords": ["rain"]})])._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert 'src="http://a/?x=&quot;y&quot;"' in shown
    assert (shown.count("<tr>"), shown.count("<audio")) == (3, 1)
    assert evil._repr_html_().count("<audio") == 1


@pytest.mark.timeout(300)  # a process that imports for seconds, on machines that are busy
def test_an_assistant_finds_and_hears(url: str) -> None:
    """By the SDK's own client, over the command's standard input and output."""
    environment = os.environ | {"AUDIOFUSE_SEARCH_URL": url, "AUDIOFUSE_SEARCH_KEY": KEY}
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "audiofuse", "mcp"], env=dict(environment)
    )

    async def run() -> None:
        async with McpClient(stdio_client(command)) as assistant:

            async def call(tool: str, **given: Any) -> Any:
                return await assistant.call_tool(tool, given)

            tools = {each.name: each for each in (await assistant.list_tools()).tools}
            assert tools.keys() == {"search", "similar", "item", "listen", "facets"}
            assert all(each.description for each in tools.values())
            found = await call("search", query="a gong", label=["Gong"])
            (hit,) = found.structured_content["result"]
            assert (hit["key"], "title" in hit) == (GONG, True)
            heard = (await call("listen", id=hit["id"])).content[0]
            assert (heard.type, heard.mime_type) == ("audio", "audio/ogg")
            item = (await call("item", id=hit["id"])).structured_content
            assert item["audio_url"].startswith(url)
            alike = (await call("similar", id=hit["id"], limit=2)).structured_content["result"]
            assert len(alike) == 2
            assert (await call("facets")).structured_content["items"] == 4
            refused = await call("search", query="?!")
            assert refused.is_error
            assert "no words" in refused.content[0].text

    anyio.run(run)


def test_a_large_sound_is_heard_by_its_link(
    client: Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would fill an assistant's memory is refused, with where to hear it."""
    from audiofuse.workers.programs import assistant

    monkeypatch.setattr(assistant, "MOST_BYTES", 10)
    hit, *_ = client.search("a gong")

    async def run() -> Any:
        async with (
            AsyncClient(url, KEY) as asking,
            McpClient(assistant.build_assistant(asking)) as assisted,
        ):
            return await assisted.call_tool("listen", {"id": hit.id})

    refused = anyio.run(run)
    assert refused.is_error
    assert "audio_url" in refused.content[0].text


def test_a_client_made_of_the_description_asks(url: str) -> None:
    """Operations have names to call them by; answers are typed, and refusals are errors."""
    made = aiopenapi3.OpenAPI.load_sync(f"{url}/openapi.json")
    made.authenticate(HTTPBearer=KEY)
    ask = made._
    found = ask.search(parameters={"q": "a gong", "limit": 2}).hits
    assert len(found) == 2
    assert isinstance(found[0].payload.keywords, list)
    by_all = ask.search_by_all(data={"q": "a gong", "limit": 2}).hits
    assert [hit.id for hit in by_all] == [hit.id for hit in found]
    item = ask.item(parameters={"id": found[0].id})
    assert (item.key, item.payload.duration_s) == (found[0].key, found[0].payload.duration_s)
    with pytest.raises(HTTPClientError) as refused:
        ask.item(parameters={"id": NOBODY})
    assert refused.value.status_code == 404
