"""The service of a federation, put together from settings."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response, Security
from fastapi.security import HTTPBearer

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.workers.federation.asking import Federation
from audiofuse.workers.federation.members import ANSWERS, Line, read_members
from audiofuse.workers.federation.models import Alive, MemberHealth
from audiofuse.workers.federation.routes import item_routes, other_routes, search_routes
from audiofuse.workers.federation.sounds import sound_routes
from audiofuse.workers.service.admission.entrance import add_entrance
from audiofuse.workers.service.admission.keys import Keys
from audiofuse.workers.service.admission.questions import Questions
from audiofuse.workers.service.page import add_page

HEALTH_S = 1.0  # for which what is known of the members' health is told again
ANYWHERE = "https: http:"  # where members' storages are, which their links to sounds lead to


def create_federation(settings: Settings) -> FastAPI:
    """Return the service that asks the settings' members.

    Raises ``ConfigurationError`` if they are none, or their keys are no keys.
    """
    members = read_members(settings)
    if not members:
        raise ConfigurationError(f"{PREFIX}ASK names no deployment")
    keys = Keys(settings.api_keys)
    if keys.are_limited:
        raise ConfigurationError(
            f"{PREFIX}API_KEYS: no key of a federation has folders: limit its own key, at each "
            "member, to what all its callers may see"
        )
    federation = Federation([Line(member, settings.ask_s, settings.ca_file) for member in members])

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await federation.close()

    app = FastAPI(
        title="audiofuse federation", version="1", docs_url=None, redoc_url=None,
        servers=[{"url": "/"}], lifespan=life,
        generate_unique_id_function=lambda route: route.name,  # as generated clients call them
    )  # fmt: skip
    needs_key = [Security(HTTPBearer(auto_error=False))] if keys else []
    questions = Questions()
    app.include_router(sound_routes(federation))
    for router in (
        search_routes(federation, questions), item_routes(federation, questions), other_routes(),
    ):  # fmt: skip
        app.include_router(router, dependencies=needs_key)
    _add_probes(app, federation)
    add_page(app)
    add_entrance(app, settings, keys, ANYWHERE, fetched="")
    return app


def _add_probes(app: FastAPI, federation: Federation) -> None:
    known: tuple[float, dict[str, str]] | None = None

    @app.get("/healthz", tags=["probes"])
    async def alive() -> Alive:
        """Answer that the process is alive, and whom it asks."""
        return Alive(members=list(federation.lines))

    @app.get("/readyz", tags=["probes"], responses={503: {"model": MemberHealth}})
    async def ready(response: Response) -> MemberHealth:
        """Answer 200 while any member is ready."""
        nonlocal known
        now = time.monotonic()
        if known is None or now - known[0] > HEALTH_S:
            known = now, await federation.health()
        health = known[1]
        response.status_code = 200 if ANSWERS in health.values() else 503
        return MemberHealth(members=health)
