"""Parts of sounds, to be heard or taken along without the hours around them."""

import os
import subprocess
import sys
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from audiofuse.core.audio.excerpt import MOST_S
from audiofuse.core.cores import thread_limits
from audiofuse.core.errors import ObjectChanged
from audiofuse.core.search.search import Searcher
from audiofuse.core.storage.store import Store
from audiofuse.workers.service.admission.guard import Right
from audiofuse.workers.service.admission.problems import ANY, Refusal, answers
from audiofuse.workers.service.admission.questions import Questions
from audiofuse.workers.service.models import Excerpt, Id

CUT = "audiofuse.core.audio.excerpt"
PATIENCE_S = 90.0  # to read and cut a sound; lower: long files on slow disks have no excerpts
GONE = "the sound was replaced or deleted: search again"


def excerpt_routes(searcher: Searcher, store: Store | None, questions: Questions) -> APIRouter:
    """Return the route that cuts sounds of ``store``."""
    router = APIRouter(tags=["audio"], prefix="/v1", responses=ANY | answers(403, 404))

    @router.get(
        "/items/{id}/excerpt", response_class=Response,
        responses={200: {"content": {"audio/wav": {}}}},
    )  # fmt: skip
    async def excerpt(
        request: Request,
        id: Id,  # noqa: A002 - its name in the URL
        options: Annotated[Excerpt, Query()],
    ) -> Response:
        """Return what is heard between two seconds of an item, as WAV."""
        if Right.AUDIO not in request.state.caller.rights:
            raise Refusal(403, "not-allowed", "this key may search, but not hear: scope audio")
        if not 0 < options.end_s - options.start_s <= MOST_S:
            raise Refusal(422, "not-an-excerpt", f"it must have up to {MOST_S:g} s, and not none")
        return await questions.cut(partial(_excerpt, searcher, store, id, options))

    return router


def _excerpt(searcher: Searcher, store: Store | None, id_: str, options: Excerpt) -> Response:
    payload = searcher.item(id_).payload
    if store is None or payload["bucket"] != store.bucket:
        raise Refusal(404, "not-found", "the item is in no bucket of this service")
    info = store.head(payload["key"])
    if info is None or info.etag != payload["etag"]:
        raise Refusal(404, "not-found", GONE)
    command = [sys.executable, "-m", CUT]
    try:
        with store.open(info) as path:  # of an S3 bucket a copy on disk, never in memory
            done = subprocess.run(  # noqa: S603 - ourselves
                [*command, str(path), str(options.start_s), str(options.end_s)],
                capture_output=True, timeout=PATIENCE_S, env=os.environ | thread_limits(1),
                check=False,
            )  # fmt: skip
    except ObjectChanged as error:
        raise Refusal(404, "not-found", GONE) from error
    except subprocess.TimeoutExpired as error:
        raise Refusal(422, "not-an-excerpt", "cutting it takes too long") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-200:] or "the file cannot be cut"
        raise Refusal(422, "not-an-excerpt", said)
    name = f"{payload['key'].rpartition('/')[2]}-{options.start_s:g}-{options.end_s:g}.wav"
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    headers = {"Content-Disposition": f'attachment; filename="{safe}"'}
    return Response(done.stdout, media_type="audio/wav", headers=headers)
