"""The query towers as files, so that anybody asks Qdrant with the very encoder that is live."""

import shutil
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse

from audiofuse.core.bundles.manifest import QUERY
from audiofuse.workers.service.admission.problems import ANY, Refusal, answers
from audiofuse.workers.service.models import Version

ZIP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/zip": {}}},
    206: {"description": "A part"},
}
FOR_EVER = "private, max-age=31536000, immutable"  # a version never changes


class PackedTowers:
    """The query tower of each version as one ZIP file: packed once, when it is first asked for."""

    def __init__(self, locate: Callable[[str], Path]) -> None:
        """``locate`` finds the bundle of a version."""
        self._locate = locate
        self._folder: Path | None = None  # made once it is needed
        self._packed: dict[str, Path] = {}
        self._lock = threading.Lock()

    def file(self, version: str) -> Path:
        """Return the file of a version."""
        with self._lock:
            if version not in self._packed:
                self._folder = self._folder or self._made()
                path = self._folder / f"{version}.zip"
                _pack(self._locate(version) / QUERY, path)
                self._packed[version] = path
            return self._packed[version]

    def _made(self) -> Path:
        """Make the folder, which goes with this process."""
        folder = Path(tempfile.mkdtemp(prefix="audiofuse-towers-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    def keep(self, versions: Iterable[str]) -> None:
        """Delete the files of all others; who is reading one reads it to its end."""
        wanted = set(versions)
        with self._lock:
            for version in self._packed.keys() - wanted:
                self._packed.pop(version).unlink(missing_ok=True)


def encoder_routes(towers: PackedTowers, loaded: Callable[[], frozenset[str]]) -> APIRouter:
    """Return the route that gives the ``towers`` of those versions that are ``loaded``."""
    router = APIRouter(tags=["encoders"], prefix="/v1/encoders", responses=ANY | answers(404))

    @router.get(
        "/{version}/query.zip", response_class=FileResponse,
        responses=ZIP | answers(416),
    )  # fmt: skip
    def query_tower(version: Version) -> FileResponse:
        """Return a version's text tower as fastembed loads it."""
        versions = loaded()
        towers.keep(versions)
        if version not in versions:
            raise Refusal(404, "not-found", f"no encoder {version} is loaded here")
        headers = {"Cache-Control": FOR_EVER}
        return FileResponse(towers.file(version), headers=headers, media_type="application/zip")

    return router


def _pack(folder: Path, packed: Path) -> None:
    """Write a folder's files into a ZIP file, as they are: weights do not become smaller."""
    with zipfile.ZipFile(packed, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder))
