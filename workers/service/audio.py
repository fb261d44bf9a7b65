"""How a hit is heard: by signed links that expire, of an S3 bucket or of a folder; and in parts."""

import hashlib
import hmac
import secrets
import time
from functools import partial
from typing import Annotated
from urllib.parse import quote, urlencode, urlsplit

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from audiofuse.core.audio.excerpt import MOST_S, NotCut, excerpt
from audiofuse.core.errors import ObjectChanged, Rejected
from audiofuse.core.items import is_audio
from audiofuse.core.storage.mounts import MountedStore
from audiofuse.core.storage.s3 import S3Store
from audiofuse.core.storage.store import FolderStore, Store
from audiofuse.workers.service.admission.guard import AUDIO_PATH
from audiofuse.workers.service.admission.keys import Right
from audiofuse.workers.service.admission.problems import ANY, Refusal, answers
from audiofuse.workers.service.admission.questions import Questions
from audiofuse.workers.service.admission.seen import Seen
from audiofuse.workers.service.models import Excerpt, Id

LINK_S = 3600  # long enough to look through results, too short to be passed on
GONE = "the sound was replaced or deleted: search again"


class Links:
    """Makes links to the sounds of buckets, or none where there is no bucket."""

    def __init__(self, store: Store | None) -> None:
        """Link to what is in ``store``; links of a folder end with this process."""
        self.store = store
        self._secret = secrets.token_bytes(32)

    def bucket_of(self, key: str) -> str:
        """Return the name of the bucket in which a key lies; empty where there is none."""
        return self.store.place(key)[0] if self.store else ""

    @property
    def origin(self) -> str:
        """Where links lead to, as browsers compare it, with spaces between; empty if only here."""
        stores = [self.store]
        if isinstance(self.store, MountedStore):
            stores = [each.store for each in self.store.mounts.values()]
        links = [each.link("sound", LINK_S) for each in stores if isinstance(each, S3Store)]
        origins = ("{}://{}".format(*urlsplit(link)) for link in links)
        return " ".join(dict.fromkeys(origins))

    def _resolved(self, bucket: str, key: str) -> tuple[Store, str] | None:
        """Return the store of a sound, and its key there; ``None`` if it is in none of ours."""
        if self.store is None or self.store.place(key)[0] != bucket:
            return None
        return resolved(self.store, key)

    def link(self, bucket: str, key: str, root: str) -> str | None:
        """Return a URL of a sound; that of a folder begins with ``root``, where we are served."""
        found = self._resolved(bucket, key)
        if found is None:
            return None
        store, inner = found
        if isinstance(store, S3Store):
            return store.link(inner, LINK_S)
        expires = int(time.time()) + LINK_S
        signed = urlencode({"expires": expires, "signature": self._sign(key, expires)})
        return f"{root}{AUDIO_PATH}{quote(key)}?{signed}"

    def location(self, bucket: str, key: str) -> str | None:
        """Return where a sound lies: its S3 URI, or its path where the bucket is a folder."""
        found = self._resolved(bucket, key)
        if found is None:
            return None
        store, inner = found
        if isinstance(store, FolderStore):
            return str(store.root / inner)
        return f"s3://{store.bucket}/{inner}"

    def is_valid(self, key: str, expires: int, signature: str) -> bool:
        """Whether we made this link, and not too long ago."""
        expected = self._sign(key, expires)
        made = hmac.compare_digest(expected.encode(), signature.encode())
        return made and time.time() < expires

    def _sign(self, key: str, expires: int) -> str:
        message = f"{expires}:{key}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


def resolved(store: Store, key: str) -> tuple[Store, str] | None:
    """Return the one bucket that has a key, and the key there; ``None`` if none can have it."""
    if not isinstance(store, MountedStore):
        return store, key
    try:
        return store.resolved(key)
    except Rejected:  # of a bucket that was taken out of the settings
        return None


def audio_routes(links: Links) -> APIRouter:
    """Return the route that plays sounds of a folder; who has the link needs no key."""
    router = APIRouter()

    @router.get(
        AUDIO_PATH + "{key:path}", response_class=FileResponse, tags=["audio"],
        responses={206: {"description": "A part"}} | ANY | answers(403, 404, 416),
    )  # fmt: skip
    async def audio(key: str, expires: int, signature: str) -> FileResponse:
        """Return a sound, whole or by ``Range``; links to it come with hits."""
        if not links.is_valid(key, expires, signature):
            raise Refusal(403, "expired", "this link is wrong or has expired: search again")
        assert links.store is not None
        found = resolved(links.store, key)
        assert found
        store, inner = found
        assert isinstance(store, FolderStore)
        info = await run_in_threadpool(store.head, inner)
        if info is None or not is_audio(key):
            raise Refusal(404, "not-found", "the sound was deleted")
        return FileResponse(store.root / inner)

    return router


def excerpt_routes(seen: Seen, store: Store | None, questions: Questions) -> APIRouter:
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
        request.state.caller.require(Right.AUDIO)
        if not 0 < options.end_s - options.start_s <= MOST_S:
            raise Refusal(422, "not-an-excerpt", f"it must have up to {MOST_S:g} s, and not none")
        return await questions.cut(partial(_excerpt, seen, request, store, id, options))

    return router


def _excerpt(
    seen: Seen, request: Request, store: Store | None, id_: str, options: Excerpt
) -> Response:
    payload = seen.by(request).item(id_).payload
    if store is None or payload["bucket"] != store.place(payload["key"])[0]:
        raise Refusal(404, "not-found", "the item is in no bucket of this service")
    info = store.head(payload["key"])
    if info is None or info.etag != payload["etag"]:
        raise Refusal(404, "not-found", GONE)
    try:
        content = excerpt(partial(store.part, info), info.size, options.start_s, options.end_s)
    except ObjectChanged as error:
        raise Refusal(404, "not-found", GONE) from error
    except NotCut as error:
        raise Refusal(422, "not-an-excerpt", str(error)) from error
    name = f"{payload['key'].rpartition('/')[2]}-{options.start_s:g}-{options.end_s:g}.wav"
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in name)
    headers = {"Content-Disposition": f'attachment; filename="{safe}"'}
    return Response(content, media_type="audio/wav", headers=headers)


def root_of(request: Request) -> str:
    """Return the path under which a proxy serves us, empty without one."""
    return str(request.scope.get("root_path", "")).rstrip("/")
