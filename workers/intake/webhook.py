"""The webhook: an HTTP endpoint to which a storage posts its events.

    POST /events    Authorization: Bearer TOKEN, or ?token=TOKEN where a sender has no header

    200  the broker has it, or it was dropped: no event of ours, however often it is sent again
    401  the token is missing or wrong
    503  the broker is away; a sender that queues sends it again

MinIO and SeaweedFS send the header; Ceph sends nothing but what stands in its endpoint's URL.
"""

import hmac
import logging
import threading

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from audiofuse.core.errors import Unavailable
from audiofuse.workers.intake.events import MAX_MESSAGE_BYTES, Dropped
from audiofuse.workers.intake.handover import Handover
from audiofuse.workers.telemetry.metrics import INTAKE_FAILURES
from audiofuse.workers.telemetry.names import Flaw, Source

log = logging.getLogger(__name__)

PATH = "/events"
RETRY_AFTER_S = 5
GRACE_S = 2  # for requests that are under way when it stops


class WebhookIntake:
    """Listens for what a storage posts."""

    def __init__(self, handover: Handover, token: str, host: str, port: int) -> None:
        """Serve ``host``:``port`` to whoever has the token; nothing listens yet."""
        self._config = uvicorn.Config(
            create_app(handover, token), host=host, port=port, log_config=None,
            log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_S,
        )  # fmt: skip

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop`` is set."""
        log.info("listening on %s port %d", self._config.host, self._config.port)
        server = uvicorn.Server(self._config)

        def end() -> None:
            stop.wait()
            server.should_exit = True

        threading.Thread(target=end, daemon=True).start()
        server.run()


def create_app(handover: Handover, token: str) -> FastAPI:
    """Return the endpoint that hands over what is posted with the token."""
    app = FastAPI(title="audiofuse webhook", openapi_url=None)

    @app.post(PATH)
    async def take(request: Request) -> Response:
        if not hmac.compare_digest(_token(request).encode(), token.encode()):
            sender = request.client.host if request.client else "an unknown host"
            handover.drop(Dropped(Flaw.UNAUTHENTICATED, f"a message from {sender}"))
            return Response(status_code=401, headers={"WWW-Authenticate": "Bearer"})
        try:
            body = await _read(request)
            await run_in_threadpool(handover.hand_over, [body])
        except ClientDisconnect:
            return Response(status_code=400)  # nobody hears it: the sender left before the end
        except Unavailable as error:
            INTAKE_FAILURES.labels(Source.WEBHOOK).inc()
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return Response(str(error), status_code=503, headers=headers)
        return Response()

    @app.api_route(PATH, methods=["GET", "HEAD"])
    @app.get("/readyz")
    async def probe() -> Response:
        """Answer whoever looks whether somebody is here; MinIO does before it sends."""
        return Response()

    return app


def _token(request: Request) -> str:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return request.query_params.get("token", "")


async def _read(request: Request) -> bytes:
    """Read the body; of one that is too large only enough to see that it is."""
    body = bytearray()
    async for chunk in request.stream():
        if len(body) <= MAX_MESSAGE_BYTES:
            body += chunk
    return bytes(body)
