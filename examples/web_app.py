"""A page of your own that finds sounds: ``pip install audiofuse fastapi uvicorn``.

    uvicorn web_app:app --port 8000      # and open http://127.0.0.1:8000

It asks what ``audiofuse up`` runs; elsewhere set AUDIOFUSE_SEARCH_URL and AUDIOFUSE_SEARCH_KEY. The
key stays here: whoever sees the page gets links that are good for some minutes. In Django the body
of ``find`` is that of an asynchronous view.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import escape

from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse

from audiofuse import AsyncClient
from audiofuse.core.errors import QueryError, Unavailable

PAGE = """<!doctype html><title>Sounds</title>
<form><input name="q" value="{q}" placeholder="a dog barking"> <button>Find</button></form>
{found}"""


@asynccontextmanager
async def with_client(app: FastAPI) -> AsyncIterator[None]:
    """Keep one client, which keeps its connections."""
    async with AsyncClient() as app.state.client:
        yield


app = FastAPI(lifespan=with_client)


@app.get("/", response_class=HTMLResponse)
async def find(q: str = "", label: str = "") -> str:
    """Show what answers a question, as a table with players."""
    found = ""
    if q:
        try:
            hits = await app.state.client.search(q, limit=20, label=[label] if label else [])
        except QueryError as error:
            raise HTTPException(422, str(error)) from error
        except Unavailable as error:
            raise HTTPException(503, str(error)) from error
        found = hits._repr_html_()  # what a notebook shows; iterate over hits to draw your own
    return PAGE.format(q=escape(q), found=found)
