"""An MCP server, by which assistants find sounds: ``audiofuse mcp``.

It asks a query service, as any client does: what that answers, and to whom, is decided there.
"""

import mimetypes
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Annotated, Any, ParamSpec, TypeVar

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.utilities.types import Audio
from pydantic import Field

from audiofuse.core.errors import AudiofuseError, QueryError
from audiofuse.workers.programs.client import AsyncClient
from audiofuse.workers.programs.hits import Sound

Given = ParamSpec("Given")
T = TypeVar("T")

MOST_HITS = 50  # of one answer: an assistant reads all of them
MOST_BYTES = 5 * 1024**2  # of a sound that is handed over; larger ones are heard by their link
INSTRUCTIONS = (
    "Finds sounds in an archive by what they sound like and by their metadata. Search with a short "
    "English sentence that describes the sound, e.g. 'a dog barking in the distance'. Scores are "
    "cosines: compare them within one answer only. Relevance, where it is known, is how probably a "
    "sound is what the sentence means, from 0 to 1: if it is low for all, say that nothing fits."
)
FIELDS = ("title", "description", "keywords", "labels", "duration_s", "extra")

Limit = Annotated[int, Field(ge=1, le=MOST_HITS, description="Most sounds to return.")]
Id = Annotated[str, Field(description="The id of a sound that was found.")]
Tag = Annotated[list[str], Field(description="Exactly as written; a sound has all of them.")]
Seconds = Annotated[float | None, Field(ge=0, description="Length in seconds.")]


def build_assistant(client: AsyncClient) -> MCPServer[Any]:
    """Return the server, whose tools ask by ``client``."""
    tools = _Tools(client)
    server = MCPServer[Any]("audiofuse", instructions=INSTRUCTIONS, log_level="WARNING")
    for tool in (tools.search, tools.similar, tools.item, tools.listen, tools.facets):
        server.add_tool(_explaining(tool))
    return server


def _explaining(tool: Callable[Given, Awaitable[T]]) -> Callable[Given, Awaitable[T]]:
    """Have an assistant read what is wrong with what it asked; of a bug it is told nothing."""

    @wraps(tool)
    async def explained(*given: Given.args, **named: Given.kwargs) -> T:
        try:
            return await tool(*given, **named)
        except AudiofuseError as error:
            raise ToolError(str(error)) from error

    return explained


class _Tools:
    """What an assistant may do; each docstring is what it is told of the tool."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def search(  # noqa: PLR0913, PLR0917 - each is an option of the tool
        self,
        query: Annotated[str, Field(description="A sentence that describes the sound.")],
        limit: Limit = 10,
        label: Tag = [],  # noqa: B006 - read only; pydantic copies it
        keyword: Tag = [],  # noqa: B006 - as above
        min_duration: Seconds = None,
        max_duration: Seconds = None,
        prefix: Annotated[str, Field(description="How keys begin, e.g. a folder.")] = "",
        min_relevance: Annotated[
            float | None, Field(ge=0, le=1, description="Least probability that it is meant.")
        ] = None,
    ) -> list[dict[str, Any]]:
        """Find sounds by a sentence that describes them, best first."""
        found = await self._client.search(
            query, limit=limit, label=label, keyword=keyword, min_duration=min_duration,
            max_duration=max_duration, prefix=prefix, min_relevance=min_relevance,
        )  # fmt: skip
        return [_told(each) for each in found]

    async def similar(self, id: Id, limit: Limit = 10) -> list[dict[str, Any]]:  # noqa: A002 - the tool's word
        """Find sounds that are like one that was found."""
        return [_told(each) for each in await self._client.similar(id, limit=limit)]

    async def item(self, id: Id) -> dict[str, Any]:  # noqa: A002 - as above
        """Tell all that is known of one sound, and a link by which it is heard for some minutes."""
        sound = await self._client.item(id)
        return _told(sound) | {"audio_url": sound.audio_url}

    async def listen(self, id: Id) -> Audio:  # noqa: A002 - as above
        """Hand over the sound itself, if it is small; a larger one has a link in its item."""
        sound = await self._client.item(id)
        if sound.payload.get("size", 0) > MOST_BYTES:
            raise QueryError(f"it has more than {MOST_BYTES} bytes: hear it by its audio_url")
        kind = mimetypes.guess_type(sound.key)[0] or "audio/wav"
        return Audio(data=await self._client.read(sound), format=kind.partition("/")[2])

    async def facets(
        self,
        prefix: Annotated[str, Field(description="How keys begin, e.g. a folder.")] = "",
    ) -> dict[str, Any]:
        """Tell what the archive has: how many sounds, labels, keywords, lengths, years, folders."""
        return await self._client.facets(prefix=prefix)


def _told(sound: Sound) -> dict[str, Any]:
    known = {name: value for name in FIELDS if (value := sound.payload.get(name))}
    figures = {"score": sound.score, "relevance": sound.relevance}
    score = {name: round(value, 3) for name, value in figures.items() if value is not None}
    moments = {"moments": sound.moments} if sound.moments else {}
    return {"id": sound.id, "key": sound.key} | score | known | moments
