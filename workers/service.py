"""The query service: the text tower behind a small HTTP endpoint, for whoever asks in words."""

import logging
from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from core.bundle import load_encoder, load_version
from core.errors import AudiofuseError, ConfigurationError, QueryError, Unavailable
from core.index import open_index
from core.registry import Watch, open_registry
from core.search import Searcher, Towers
from core.settings import Settings

log = logging.getLogger(__name__)

STATUS: dict[type[AudiofuseError], int] = {
    QueryError: 422,
    Unavailable: 503,
    ConfigurationError: 503,
}


def open_searcher(settings: Settings) -> Searcher:
    """Return a searcher that has loaded what it needs.

    Raises ``ConfigurationError`` when an encoder that it needs is nowhere to be had.
    """
    watch = Watch(open_registry(settings))
    own = None if _is_open(watch) else load_encoder(settings)

    def wanted() -> tuple[str, ...]:
        if rollout := watch.look():
            return rollout.versions
        return (own[1],) if own else ()

    towers = Towers(partial(load_version, settings), {own[1]: own[0]} if own else {})
    searcher = Searcher(open_index(settings), towers, wanted)
    try:
        searcher.prepare()
    except Unavailable as error:
        log.warning("not everything is loaded yet: %s", error)
    return searcher


def _is_open(watch: Watch) -> bool:
    """Whether there is a document; without one AUDIOFUSE_ENCODER is what to begin with."""
    try:
        return watch.look() is not None
    except Unavailable as error:
        log.warning("the registry is away: %s", error)
        return False


def create_app(searcher: Searcher) -> FastAPI:
    """Serve a searcher: ``GET /v1/search?q=a dog barking&top=5``."""
    app = FastAPI(title="audiofuse query service")

    @app.get("/v1/search")
    def search(q: str, top: int = 10) -> dict[str, Any]:
        """Return the sounds nearest to a sentence, best first, with the parts of their score."""
        return {"query": q} | asdict(searcher.search(q, top))

    @app.get("/readyz")
    def ready(version: str = "") -> JSONResponse:
        """Answer 200 once an encoder is loaded: that of the ``version``, if one is given."""
        loaded = searcher.loaded
        is_ready = version in loaded if version else bool(loaded)
        return JSONResponse({"loaded": sorted(loaded)}, 200 if is_ready else 503)

    for error_class in STATUS:
        app.add_exception_handler(error_class, _explain)
    return app


def _explain(_: Request, error: Exception) -> JSONResponse:
    status = next(code for kind, code in STATUS.items() if isinstance(error, kind))
    return JSONResponse({"error": str(error)}, status_code=status)
