"""Links by which a hit is heard: signed and expiring, whether its bucket is S3 or a folder."""

import hashlib
import hmac
import secrets
import time
from urllib.parse import quote, urlencode, urlsplit

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from audiofuse.core.items import is_audio
from audiofuse.core.storage.s3 import S3Store
from audiofuse.core.storage.store import FolderStore, Store
from audiofuse.workers.service.admission.guard import AUDIO_PATH
from audiofuse.workers.service.admission.problems import ANY, Refusal, answers

LINK_S = 3600  # long enough to look through results, too short to be passed on


class Links:
    """Makes links to the sounds of one bucket, or none where there is no bucket."""

    def __init__(self, store: Store | None) -> None:
        """Link to what is in ``store``; links of a folder end with this process."""
        self.store = store
        self._secret = secrets.token_bytes(32)

    @property
    def origin(self) -> str:
        """Where links lead to, as a browser compares it; empty if that is here."""
        if not isinstance(self.store, S3Store):
            return ""
        scheme, host, *_ = urlsplit(self.store.link("sound", LINK_S))
        return f"{scheme}://{host}"

    def link(self, bucket: str, key: str, root: str) -> str | None:
        """Return a URL of a sound; that of a folder begins with ``root``, where we are served."""
        if self.store is None or self.store.bucket != bucket:
            return None
        if isinstance(self.store, S3Store):
            return self.store.link(key, LINK_S)
        expires = int(time.time()) + LINK_S
        signed = urlencode({"expires": expires, "signature": self._sign(key, expires)})
        return f"{root}{AUDIO_PATH}{quote(key)}?{signed}"

    def location(self, bucket: str, key: str) -> str | None:
        """Return where a sound lies: its S3 URI, or its path where the bucket is a folder."""
        if self.store is None or self.store.bucket != bucket:
            return None
        if isinstance(self.store, FolderStore):
            return str(self.store.root / key)
        return f"s3://{bucket}/{key}"

    def is_valid(self, key: str, expires: int, signature: str) -> bool:
        """Whether we made this link, and not too long ago."""
        expected = self._sign(key, expires)
        made = hmac.compare_digest(expected.encode(), signature.encode())
        return made and time.time() < expires

    def _sign(self, key: str, expires: int) -> str:
        message = f"{expires}:{key}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


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
        store = links.store
        assert isinstance(store, FolderStore)
        info = await run_in_threadpool(store.head, key)
        if info is None or not is_audio(key):
            raise Refusal(404, "not-found", "the sound was deleted")
        return FileResponse(store.root / key)

    return router


def root_of(request: Request) -> str:
    """Return the path under which a proxy serves us, empty without one."""
    return str(request.scope.get("root_path", "")).rstrip("/")
