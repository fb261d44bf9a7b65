"""The search page: files of this package, which ask only the service's public interface."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

FOLDER = Path(str(files("audiofuse.workers.service"))) / "web"
FRESH = {"Cache-Control": "no-cache"}  # after an upgrade no browser mixes old files with new ones


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/``, and what it loads under ``/web``."""
    app.mount("/web", _Files(directory=FOLDER))

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        """Return the page."""
        return FileResponse(FOLDER / "index.html", headers=FRESH)


class _Files(StaticFiles):
    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """Return a file that browsers ask about anew each time."""
        response = super().file_response(*arguments, **options)
        response.headers.update(FRESH)
        return response
