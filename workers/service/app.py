"""The query service: builds what it needs from settings, and puts the routes together."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from pathlib import Path

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer

from audiofuse.core.bundles.registry import Watch, locate, open_registry
from audiofuse.core.feedback.book import open_book
from audiofuse.core.search.search import Searcher, open_searcher
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import has_bucket, open_store
from audiofuse.workers.indexing.decoding.pool import DecodedRecording, Decoders
from audiofuse.workers.queue.broker import connect_redis
from audiofuse.workers.queue.followers import Followers, follower_name, joined
from audiofuse.workers.repair.explain import Explainer, open_explainer
from audiofuse.workers.service import routes as api
from audiofuse.workers.service.admission.entrance import add_entrance
from audiofuse.workers.service.admission.guard import MAX_BODY_BYTES
from audiofuse.workers.service.admission.keys import Keys
from audiofuse.workers.service.admission.questions import Questions
from audiofuse.workers.service.admission.seen import Seen
from audiofuse.workers.service.archive import archive_routes
from audiofuse.workers.service.audio import Links, audio_routes, excerpt_routes
from audiofuse.workers.service.catalogue import catalogue_routes
from audiofuse.workers.service.encoders import PackedTowers, encoder_routes
from audiofuse.workers.service.maps import map_routes
from audiofuse.workers.service.page import add_page
from audiofuse.workers.service.probes import Announcer, add_probes
from audiofuse.workers.service.repair import Repair, explain_routes, repair_routes
from audiofuse.workers.service.uploads.routes import open_receiver, upload_routes
from audiofuse.workers.telemetry.metrics import LOADED, QUERY_BATCH, Process

# Processes that decode the sounds of questions. Higher: more sounds at once, 100 MB each.
DECODERS = 2


@contextmanager
def running(settings: Settings) -> Iterator[FastAPI]:
    """Yield the service of these settings; while it runs it follows the rollout, and says so.

    Raises what ``open_searcher`` does.
    """
    watch, towers = Watch(open_registry(settings)), PackedTowers(partial(locate, settings))
    searcher = build_searcher(settings, watch)
    announcer = _announcer(settings, searcher)

    def prepared() -> None:
        towers.keep(searcher.loaded)
        if announcer:
            announcer.prepared(watch.tag)

    _begin("follow", partial(searcher.follow, prepared))
    if announcer:
        _begin("announce", announcer.run)
    try:
        yield create_app(
            searcher, settings, towers, open_explainer(settings) if has_bucket(settings) else None
        )
    finally:
        if announcer:
            announcer.end()


def _announcer(settings: Settings, searcher: Searcher) -> Announcer | None:
    """Return who tells rollouts of this service; they concern a bucket's."""
    if not has_bucket(settings):
        return None
    followers = Followers(connect_redis(settings), settings.index_name)
    return Announcer(followers, follower_name("search"), lambda: joined(searcher.run_on().values()))


def _begin(name: str, run: Callable[[], None]) -> None:
    threading.Thread(target=run, name=name, daemon=True).start()


def build_searcher(settings: Settings, watch: Watch | None = None) -> Searcher:
    """Return a searcher that decodes in other processes what it is sent; see ``open_searcher``."""
    decoders = cache(partial(Decoders, DECODERS, settings.decode_timeout_s))
    starting = threading.Lock()

    def open_sound(path: Path, max_duration_s: float) -> AbstractContextManager[DecodedRecording]:
        with starting:
            started = decoders()  # once they are needed
        return started.open(path, max_duration_s)

    return open_searcher(settings, open_sound, QUERY_BATCH.observe, watch)


def create_app(
    searcher: Searcher,
    settings: Settings,
    towers: PackedTowers | None = None,
    explainer: Explainer | None = None,
) -> FastAPI:
    """Serve a searcher as the settings say: links to the bucket's sounds, who may ask, how much.

    ``towers`` are the query towers as files, if somebody else looks after them. Without an
    ``explainer`` nothing says why an object is not found.
    """
    app = FastAPI(
        title="audiofuse", version="1", docs_url=None, redoc_url=None, servers=[{"url": "/"}],
        generate_unique_id_function=lambda route: route.name,  # as generated clients call them
    )  # fmt: skip
    links = Links(open_store(settings) if has_bucket(settings) else None)
    keys, seen = Keys(settings.api_keys, links.bucket_of), Seen(searcher)
    questions, towers = Questions(), towers or PackedTowers(partial(locate, settings))
    needs_key = [Security(HTTPBearer(auto_error=False))] if keys else []  # said in OpenAPI
    book = cache(partial(open_book, settings)) if settings.feedback else None
    for router in (
        api.search_routes(seen, links, questions),
        api.item_routes(seen, links, questions),
        catalogue_routes(seen, links, questions),
        encoder_routes(towers, lambda: searcher.loaded),
        archive_routes(seen, links.store),
        excerpt_routes(seen, links.store, questions),
        api.feedback_routes(seen, book, questions),
        map_routes(seen, questions),
        *([explain_routes(explainer, questions)] if explainer else []),
        repair_routes(Repair(settings, links) if has_bucket(settings) else None, questions),
    ):
        app.include_router(router, dependencies=needs_key)
    receiver = open_receiver(settings, links.store)
    app.include_router(upload_routes(receiver, has_keys=bool(keys)), dependencies=needs_key)
    app.include_router(audio_routes(links))
    add_probes(app, searcher)
    add_page(app)
    most = receiver.most_bytes if receiver else MAX_BODY_BYTES
    add_entrance(app, settings, keys, links.origin, upload_bytes=most)
    LOADED[Process.SEARCH].versions = lambda: searcher.loaded
    return app
