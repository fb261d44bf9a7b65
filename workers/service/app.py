"""The query service: builds what it needs from settings, and puts the routes together."""

import threading
from contextlib import AbstractContextManager
from functools import cache, partial
from ipaddress import ip_address
from pathlib import Path

from fastapi import FastAPI, Security
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import HTTPBearer

from audiofuse.core.bundles.bundle import locate
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.search.search import Searcher, open_searcher
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import open_store
from audiofuse.workers.indexing.decoding.decoders import DecodedRecording, Decoders
from audiofuse.workers.service import routes as api
from audiofuse.workers.service.audio import Links, audio_routes
from audiofuse.workers.service.encoders import PackedTowers, encoder_routes
from audiofuse.workers.service.guard import Guard, Keys, Rates, SafeHeaders
from audiofuse.workers.service.measured import Measured
from audiofuse.workers.service.page import add_page
from audiofuse.workers.service.probes import add_probes
from audiofuse.workers.service.problems import explain_errors
from audiofuse.workers.service.questions import Questions
from audiofuse.workers.telemetry.metrics import LOADED, QUERY_BATCH, Process

# Processes that decode the sounds of questions. Higher: more sounds at once, 100 MB each.
DECODERS = 2


def build_searcher(settings: Settings) -> Searcher:
    """Return a searcher that decodes in other processes what it is sent; see ``open_searcher``."""
    decoders = cache(partial(Decoders, DECODERS, settings.decode_timeout_s))
    starting = threading.Lock()

    def open_sound(path: Path, max_duration_s: float) -> AbstractContextManager[DecodedRecording]:
        with starting:
            started = decoders()  # once they are needed
        return started.open(path, max_duration_s)

    return open_searcher(settings, open_sound, QUERY_BATCH.observe)


def create_app(searcher: Searcher, settings: Settings) -> FastAPI:
    """Serve a searcher as the settings say: links to the bucket's sounds, who may ask, how much."""
    app = FastAPI(title="audiofuse", version="1", docs_url=None, redoc_url=None)
    links, keys = Links(open_store(settings) if settings.bucket else None), Keys(settings.api_keys)
    questions, towers = Questions(), PackedTowers(partial(locate, settings))
    needs_key = [Security(HTTPBearer(auto_error=False))] if keys else []  # said in OpenAPI
    for router in (
        api.search_routes(searcher, links, questions),
        api.item_routes(searcher, links, questions),
        encoder_routes(towers, lambda: searcher.loaded),
    ):
        app.include_router(router, dependencies=needs_key)
    app.include_router(audio_routes(links))
    add_probes(app, searcher)
    add_page(app)
    explain_errors(app)
    rates = Rates(settings.rate_limit) if settings.rate_limit else None
    app.add_middleware(Guard, keys, rates, settings.max_query_bytes)
    app.add_middleware(SafeHeaders, links.origin)
    if settings.cors_origins:
        origins = [origin.strip() for origin in settings.cors_origins.split(",")]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    app.add_middleware(Measured)
    LOADED[Process.SEARCH].versions = lambda: searcher.loaded
    return app


def check_exposure(host: str, settings: Settings, *, is_open: bool) -> None:
    """Raise ``ConfigurationError`` if other machines could ask without a key, unless wanted."""
    if not (is_open or Keys(settings.api_keys) or _is_loopback(host)):
        raise ConfigurationError(
            f"whoever reaches {host} could search everything: set AUDIOFUSE_API_KEYS, "
            "or say --open if that is wanted"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
