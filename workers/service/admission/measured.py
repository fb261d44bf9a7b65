"""How long the query service takes to answer, by route and status."""

import time
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiofuse.workers.telemetry.metrics import QUERY_DURATION

OTHER = "other"  # no route of ours, so a label that anybody could make up
BROKEN = "500"  # it ended without an answer


class Measured:
    """Measures every answer, up to its last byte."""

    def __init__(self, app: ASGIApp) -> None:
        """Measure ``app``."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), BROKEN

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, tell)
        finally:
            seconds = time.perf_counter() - started
            QUERY_DURATION.labels(_route(scope), status).observe(seconds)


def _route(scope: Mapping[str, Any]) -> str:
    """Return the route's template, which the router left behind: never a path as it was asked."""
    return str(getattr(scope.get("route"), "path", OTHER))
