#!/opt/audiofuse/bin/python
"""In place of Qdrant's server: its embedded engine, with the server's two keys and its metrics.

It reads the server's settings of docker-compose.yml, and ends at SIGTERM as the server does.
"""

import argparse
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import generate_latest

from audiofuse.core.index.embedded import create_app
from audiofuse.core.index.engine import Engine

PORT = 6333
CONFIG = r'service:\n  api_key: "(\w+)"\n  read_only_api_key: "(\w+)"\n'
READS = re.compile(r"/(points(/query(/batch|/groups)?|/scroll|/count)?|facet)$")  # by POST, too
Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[..., Awaitable[Message]], Callable[..., Awaitable[None]]], Any]


def as_the_server(app: App, key: str, read_key: str) -> App:
    """Let in also who has the key that reads, to read; and tell metrics to whoever has one."""

    async def answer(scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        given = headers.get("api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        reads = scope["method"] == "GET" or (
            scope["method"] == "POST" and READS.search(scope["path"])
        )
        if scope["path"] == "/metrics" and given in {key, read_key}:
            await say(send, 200, generate_latest())
        elif given == read_key and not reads:
            await say(
                send, 403, b'{"status":{"error":"Forbidden: Global write access is required"}}'
            )
        else:
            others = [each for each in scope["headers"] if each[0] != b"api-key"]
            known = key if given == read_key else given
            await app({**scope, "headers": [*others, (b"api-key", known.encode())]}, receive, send)

    return answer


async def say(send: Any, status: int, body: bytes) -> None:
    """Answer."""
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Run the engine until it is asked to end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config-path", required=True, type=Path)
    found = re.fullmatch(CONFIG, parser.parse_args().config_path.read_text())
    assert found, "the configuration is not as docker-compose.yml writes it"
    for written, name in zip(found.groups(), ("qdrant_api_key", "qdrant_read_key"), strict=True):
        assert written == Path("/run/secrets", name).read_text()
    engine = Engine(Path(os.environ["QDRANT__STORAGE__STORAGE_PATH"]) / "index")

    def end(*_: object) -> None:  # by uvicorn, once it has ended what it was doing
        sys.stdout.write("SIGTERM received; starting graceful shutdown\n")

    signal.signal(signal.SIGTERM, end)
    app = as_the_server(create_app(engine, found[1]), *found.groups())
    uvicorn.run(app, host="0.0.0.0", port=PORT, log_level="warning")
    engine.close()


main()
