"""The query service: the text tower behind a small HTTP endpoint, for whoever asks in words."""

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from core.errors import AudiofuseError, ConfigurationError, QueryError, Unavailable
from core.search import Searcher

STATUS: dict[type[AudiofuseError], int] = {
    QueryError: 422,
    Unavailable: 503,
    ConfigurationError: 503,
}


def create_app(searcher: Searcher) -> FastAPI:
    """Serve a searcher: ``GET /v1/search?q=a dog barking&top=5``."""
    app = FastAPI(title="audiofuse query service")

    @app.get("/v1/search")
    def search(q: str, top: int = 10) -> dict[str, Any]:
        """Return the sounds nearest to a sentence, best first, with the parts of their score."""
        return {"query": q, "hits": [asdict(hit) for hit in searcher.search(q, top)]}

    @app.get("/readyz")
    def ready() -> dict[str, str]:
        """Answer once the encoder is loaded."""
        return {"status": "ok"}

    for error_class in STATUS:
        app.add_exception_handler(error_class, _explain)
    return app


def _explain(_: Request, error: Exception) -> JSONResponse:
    status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
    return JSONResponse({"error": str(error)}, status_code=status)
