"""Long answers: how many are sent at once, and for how long."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.responses import StreamingResponse

from audiofuse.workers.service.admission.problems import Refusal
from audiofuse.workers.service.admission.streams import Streams


def _chunks() -> Iterator[bytes]:
    yield b"one"
    yield b"two"


class Receiver:
    """A client that takes the first chunk and the next once it is told to go on."""

    def __init__(self) -> None:
        self.took = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.body = b""

    async def take(self, answer: StreamingResponse) -> None:
        """Receive an answer."""
        await answer({"type": "http"}, self._stays, self._receive)

    async def _stays(self) -> Any:
        await asyncio.Event().wait()

    async def _receive(self, message: Any) -> None:
        self.body += message.get("body", b"")
        if self.body:
            self.took.set()
            await self.goes_on.wait()


def test_who_comes_while_all_places_are_taken_is_told_to_come_again() -> None:
    """The one before is answered whole, and then there is a place again."""

    async def play() -> bytes:
        streams, slow, quick = Streams(at_once=1), Receiver(), Receiver()
        quick.goes_on.set()
        first = asyncio.create_task(slow.take(streams.answer(_chunks())))
        await slow.took.wait()
        with pytest.raises(Refusal, match="as many long answers as it can"):
            await quick.take(streams.answer(_chunks()))
        slow.goes_on.set()
        await first
        await quick.take(streams.answer(_chunks()))
        return slow.body + quick.body

    assert asyncio.run(play()) == b"onetwo" * 2


def test_who_takes_too_long_loses_the_place() -> None:
    """A receiver that stops receiving does not keep its place for ever."""

    async def play() -> None:
        streams, slow, quick = Streams(at_once=1, patience_s=0.1), Receiver(), Receiver()
        with pytest.raises(TimeoutError):
            await slow.take(streams.answer(_chunks()))
        quick.goes_on.set()
        await quick.take(streams.answer(_chunks()))

    asyncio.run(play())
