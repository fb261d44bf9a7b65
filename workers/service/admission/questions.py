"""How many questions are answered at once, how many may wait, and how many bytes are received.

A question takes a thread until the index has answered, which may be half a minute. So there are
only so many threads, and only so many questions may wait for one; whoever comes then is told at
once to ask again (503 with ``Retry-After``). Nothing else of the service needs these threads.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from audiofuse.core.errors import Unavailable
from audiofuse.core.query import CANDIDATES
from audiofuse.core.storage.temporary import scratch_file
from audiofuse.workers.service.admission.problems import Refusal

T = TypeVar("T")

# Threads for ordinary questions. Higher: more of them share one call to the index; lower: less
# memory while it is slow.
AT_ONCE = 40
# Questions that may wait for these threads. Higher: bursts are answered late instead of refused.
WAITING = 80
# A question for more hits than this is a large one: one for 1,000 holds some 30 MB until it is
# answered.
LARGE_HITS = CANDIDATES
# Large questions at once. Higher: more memory (see above), and small ones wait for more of them.
LARGE_AT_ONCE = 4
# Sounds that are decoded and encoded at once: processors are what limits them, so more of them
# only make each of them, and all searches by words, slower.
SOUNDS_AT_ONCE = 4
# Large questions, or sounds, that may wait.
LONG_WAITING = 16
# Bytes of sounds that are being received or searched by. Higher: more disk; lower: fewer of the
# largest (AUDIOFUSE_MAX_QUERY_BYTES) at once.
UPLOAD_BYTES = 1024**3
UPLOAD_S = 120  # in which a sound must have arrived
RETRY_AFTER_S = 1


class Lane:
    """Threads for one kind of questions, and a bounded queue in front of them."""

    def __init__(self, at_once: int, waiting: int) -> None:
        """Answer ``at_once`` questions at a time, while at most ``waiting`` others wait."""
        self._threads = CapacityLimiter(at_once)
        self._most = at_once + waiting
        self._open = 0  # changed on the event loop only

    async def run(self, work: Callable[[], T]) -> T:
        """Return what ``work`` returns in a thread; refuse at once if too many wait for one."""
        if self._open >= self._most:
            raise busy("as many questions as it can")
        self._open += 1
        try:
            return await to_thread.run_sync(work, limiter=self._threads)
        finally:
            self._open -= 1


class Questions:
    """The lanes of a service: long questions never stand in the way of short ones."""

    def __init__(self) -> None:
        """Begin with empty lanes."""
        self._small = Lane(AT_ONCE, WAITING)
        self._large = Lane(LARGE_AT_ONCE, LONG_WAITING)
        self._sounds = Lane(SOUNDS_AT_ONCE, LONG_WAITING)

    async def answer(self, work: Callable[[], BaseModel], hits: int = 1) -> Response:
        """Return the JSON of what ``work`` returns; ``hits`` is how many are asked for."""
        lane = self._large if hits > LARGE_HITS else self._small
        return await lane.run(partial(_answered, work))

    async def answer_sound(self, work: Callable[[], BaseModel]) -> Response:
        """Return the JSON of what ``work`` returns once it has encoded a sound."""
        return await self._sounds.run(partial(_answered, work))

    async def cut(self, work: Callable[[], Response]) -> Response:
        """Return what ``work`` returns once it has cut a sound."""
        return await self._sounds.run(work)


def _answered(work: Callable[[], BaseModel]) -> Response:
    """Write the answer here, in the thread: a long one would hold up the event loop."""
    return Response(work().model_dump_json(), media_type="application/json")


class Uploads:
    """Sounds that are received, each in a file, all together within a number of bytes."""

    def __init__(self, most_bytes: int = UPLOAD_BYTES, patience_s: float = UPLOAD_S) -> None:
        """Hold ``most_bytes`` at once, and wait ``patience_s`` for each sound."""
        self._most_bytes = most_bytes
        self._patience_s = patience_s
        self._held = 0  # changed on the event loop only

    @asynccontextmanager
    async def received(self, request: Request) -> AsyncIterator[Path]:
        """Yield the file with a request's body, which is deleted afterwards.

        A ``Refusal`` says that the body came too slowly, not whole, or beside too many others.
        """
        with scratch_file("audiofuse-asked-") as (file, path):
            size = 0
            try:
                with _explained(self._patience_s):
                    async with asyncio.timeout(self._patience_s):
                        async for chunk in request.stream():
                            if self._held + len(chunk) > self._most_bytes:
                                raise busy("as many sounds as it has room for")
                            self._held += len(chunk)
                            size += len(chunk)
                            file.write(chunk)
                    file.flush()
                yield path
            finally:
                self._held -= size


@contextmanager
def _explained(patience_s: float) -> Iterator[None]:
    """Say in words of ours why a body was not received."""
    try:
        yield
    except TimeoutError:
        detail = f"the sound did not arrive within {patience_s:.0f} s"
        raise Refusal(408, "slow", detail) from None
    except ClientDisconnect:
        raise Refusal(400, "cut-off", "the sound did not arrive whole") from None
    except OSError as error:
        raise Unavailable(f"there is no room for the sound: {error}") from error


def busy(what: str) -> Refusal:
    """Return what somebody is told whom we cannot serve now."""
    detail = f"the service is busy with {what}: ask again in a moment"
    return Refusal(503, "busy", detail, Retry_After=str(RETRY_AFTER_S))
