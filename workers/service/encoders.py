"""The query towers as files, so that anybody asks Qdrant with the very encoder that is live."""

import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from audiofuse.core.bundles.manifest import QUERY
from audiofuse.workers.service.models import Version
from audiofuse.workers.service.problems import ANY, Refusal, answers

FOR_EVER = "private, max-age=31536000, immutable"  # a version never changes
CHUNK_BYTES = 1024**2


def encoder_routes(
    locate: Callable[[str], Path], loaded: Callable[[], frozenset[str]]
) -> APIRouter:
    """Return the route; ``locate`` finds the bundle of a version, of those that are ``loaded``."""
    router = APIRouter(tags=["encoders"], prefix="/v1/encoders", responses=ANY | answers(404))

    @router.get(
        "/{version}/query.zip", response_class=StreamingResponse,
        responses={200: {"content": {"application/zip": {}}}},
    )  # fmt: skip
    def query_tower(version: Version) -> StreamingResponse:
        """Return a version's text tower as fastembed loads it."""
        if version not in loaded():
            raise Refusal(404, "not-found", f"no encoder {version} is loaded here")
        file = tempfile.TemporaryFile(prefix="audiofuse-")  # noqa: SIM115 - closed once it is sent
        _pack(locate(version) / QUERY, file)
        headers = {"Content-Length": str(file.tell()), "Cache-Control": FOR_EVER}
        return StreamingResponse(_sent(file), headers=headers, media_type="application/zip")

    return router


def _pack(folder: Path, file: IO[bytes]) -> None:
    """Write a folder's files into a ZIP file, as they are: weights do not become smaller."""
    with zipfile.ZipFile(file, "w") as packed:
        for path in sorted(folder.rglob("*")):
            packed.write(path, path.relative_to(folder))
    file.seek(0, os.SEEK_END)


def _sent(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
