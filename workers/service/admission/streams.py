"""Long answers that are made while they are sent: how many at once, and for how long."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from audiofuse.workers.service.admission.problems import Refusal

# Streams at once. Higher: more people are served, each by a thread while it reads.
AT_ONCE = 4
STREAM_S = 3600  # in which an answer must have been taken, lest slow receivers keep all places
RETRY_AFTER_S = 10


class Streams:
    """The places for long answers; whoever comes while all are taken is told to come again."""

    def __init__(self, at_once: int = AT_ONCE, patience_s: float = STREAM_S) -> None:
        """Send ``at_once`` answers at a time, each for at most ``patience_s``."""
        self._at_once = at_once
        self._patience_s = patience_s
        self._open = 0  # changed on the event loop only

    def answer(self, chunks: Iterator[bytes], **options: Any) -> StreamingResponse:
        """Return an answer of ``chunks``; each is made in a thread once the one before is sent.

        ``options`` are those of ``StreamingResponse``. Sending it is what needs a place.
        """
        return _Stream(self, chunks, **options)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place; ``Refusal`` if there is none, ``TimeoutError`` if held for too long."""
        if self._open >= self._at_once:
            detail = "the service sends as many long answers as it can: ask again in a moment"
            raise Refusal(503, "busy", detail, Retry_After=str(RETRY_AFTER_S))
        self._open += 1
        try:
            async with asyncio.timeout(self._patience_s):
                yield
        finally:
            self._open -= 1


class _Stream(StreamingResponse):
    def __init__(self, streams: Streams, chunks: Iterator[bytes], **options: Any) -> None:
        super().__init__(chunks, **options)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._streams.place():
            await super().__call__(scope, receive, send)
