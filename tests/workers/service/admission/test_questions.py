"""How much is asked at once: what is refused, and what never waits for what."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel

from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.workers.service.admission.problems import Refusal
from audiofuse.workers.service.admission.questions import (
    LARGE_AT_ONCE,
    LARGE_HITS,
    LONG_WAITING,
    SOUNDS_AT_ONCE,
    Lane,
    Questions,
    Uploads,
)
from audiofuse.workers.service.app import create_app


class Answer(BaseModel):
    """An answer of few words."""

    text: str = "yes"


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """Return what those who hang wait for."""
    event = threading.Event()
    yield event
    event.set()


async def _refusal(asked: Awaitable[object]) -> Refusal:
    with pytest.raises(Refusal) as refused:
        await asked
    return refused.value


def test_beyond_what_may_wait_questions_are_refused_at_once(go_on: threading.Event) -> None:
    """Whoever finds the queue full is told when to come back; those who wait are answered."""

    async def ask() -> None:
        lane = Lane(at_once=2, waiting=1)
        hanging = [asyncio.create_task(lane.run(partial(go_on.wait, 60))) for _ in range(3)]
        await asyncio.sleep(0)  # each takes its place
        refused = await _refusal(lane.run(bool))
        assert (refused.status_code, refused.kind) == (503, "busy")
        assert refused.headers == {"Retry-After": "1"}
        go_on.set()
        assert await asyncio.gather(*hanging) == [True] * 3
        assert await lane.run(lambda: 7) == 7

    asyncio.run(ask())


def test_large_questions_and_sounds_hold_up_no_small_one(go_on: threading.Event) -> None:
    """However many hits or sounds others ask for, a small question is answered meanwhile."""

    def hang() -> Answer:
        go_on.wait(60)
        return Answer()

    async def ask() -> None:
        questions = Questions()
        large = partial(questions.answer, hang, LARGE_HITS + 1)
        sound = partial(questions.answer_sound, hang)
        hanging = [asyncio.create_task(large()) for _ in range(LARGE_AT_ONCE + LONG_WAITING)]
        hanging += [asyncio.create_task(sound()) for _ in range(SOUNDS_AT_ONCE + LONG_WAITING)]
        await asyncio.sleep(0)
        assert (await _refusal(large())).status_code == 503
        assert (await _refusal(sound())).status_code == 503
        small = await questions.answer(Answer, LARGE_HITS)
        assert small.body == b'{"text":"yes"}'
        go_on.set()
        await asyncio.gather(*hanging)

    asyncio.run(ask())


def test_slow_uploads_hold_up_no_other(
    searcher: Searcher, bucket: Path, tmp_path: Path,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> None:  # fmt: skip
    """A sound is answered while more of them than are decoded at once are still arriving."""
    content = (bucket / "music/gong.ogg").read_bytes()
    begun = b"POST /v1/search/sound HTTP/1.1\r\nHost: here\r\nContent-Length: 1000\r\n\r\nRIFF"
    with serving(create_app(searcher, Settings(home=tmp_path))) as url, ExitStack() as slow:
        for _ in range(2 * SOUNDS_AT_ONCE):
            address = (urlsplit(url).hostname, urlsplit(url).port)
            slow.enter_context(socket.create_connection(address)).sendall(begun)
        assert httpx.get(f"{url}/healthz").status_code == 200  # by now all of them are received
        answer = httpx.post(f"{url}/v1/search/sound", content=content, timeout=60)
        assert answer.json()["hits"][0]["key"] == "music/gong.ogg"


def _request(*chunks: bytes, ends: bool = True) -> Request:
    """Return a request whose body has these chunks, and maybe no end."""
    messages = iter(chunks)

    async def receive() -> dict[str, object]:
        if (chunk := next(messages, None)) is not None:
            return {"type": "http.request", "body": chunk, "more_body": True}
        if not ends:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": b"", "more_body": False}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def test_an_upload_has_a_deadline_and_a_size() -> None:
    """What stops arriving is given up, what is too much beside others is refused; both leave."""

    async def receive(uploads: Uploads, request: Request) -> bytes:
        async with uploads.received(request) as file:
            return file.read_bytes()

    async def ask() -> None:
        uploads = Uploads(most_bytes=100, patience_s=0.05)
        assert (await _refusal(receive(uploads, _request(b"x" * 90, ends=False)))).kind == "slow"
        async with uploads.received(_request(b"x" * 60)) as first:
            assert (await _refusal(receive(uploads, _request(b"x" * 60)))).kind == "busy"
            assert await receive(uploads, _request(b"y" * 30, b"y" * 10)) == b"y" * 40
        assert not first.exists()
        assert await receive(uploads, _request(b"x" * 100)) == b"x" * 100

    asyncio.run(ask())
