"""How often and how much may be asked, by whom; and the headers that every answer has."""

import threading
import time
from collections import OrderedDict
from math import ceil

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiofuse.workers.service.admission.keys import ANYBODY, Caller, Keys
from audiofuse.workers.service.admission.problems import Refusal

GUARDED = "/v1/"
SOUND_PATH = "/v1/search/sound"
AUDIO_PATH = "/v1/audio/"  # links to sounds, which are signed
READS = {"GET", "HEAD", "OPTIONS"}
MAX_BODY_BYTES = 64 * 1024  # of a question in JSON
BURST_S = 5  # of its rate may a sender use at once
SENDERS_REMEMBERED = 10_000


class Rates:
    """A token bucket for each sender; of those that were seen long ago none is remembered."""

    def __init__(self, per_s: float, remembered: int = SENDERS_REMEMBERED) -> None:
        """Let each sender ask ``per_s`` times a second."""
        self._per_s = per_s
        self._full = max(1.0, per_s * BURST_S)
        self._remembered = remembered
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when
        self._lock = threading.Lock()

    def take(self, sender: str, now: float) -> float:
        """Take a token; return 0, or in how many seconds there will be one."""
        with self._lock:
            tokens, at = self._buckets.pop(sender, (self._full, now))
            tokens = min(self._full, tokens + (now - at) * self._per_s)
            wait_s = 0.0 if tokens >= 1 else (1 - tokens) / self._per_s
            self._buckets[sender] = (tokens if wait_s else tokens - 1, now)
            while len(self._buckets) > self._remembered:
                self._buckets.popitem(last=False)
        return wait_s

    @property
    def senders(self) -> int:
        """How many are remembered."""
        return len(self._buckets)


class Guard:
    """Middleware: refuses who has no key, asks too often, or sends too much."""

    def __init__(
        self, app: ASGIApp, keys: Keys, rates: Rates | None, sound_bytes: int,
        upload_bytes: int = MAX_BODY_BYTES,
    ) -> None:  # fmt: skip
        """Guard what ``app`` has under ``/v1/``, with limits to what is sent there."""
        self._app = app
        self._keys = keys
        self._rates = rates
        self._sound_bytes = sound_bytes
        self._upload_bytes = upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, its caller in its state, or answer with a problem."""
        if scope["type"] != "http" or not _path(scope).startswith(GUARDED):
            await self._app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            scope.setdefault("state", {})["caller"] = self._admit(scope, headers)
            limit = self._most_bytes(scope)
            if int(headers.get("content-length", 0)) > limit:
                raise _too_large(limit)
        except Refusal as refusal:
            await refusal.response()(scope, receive, send)
        else:
            await self._app(scope, _counted(receive, limit), send)

    def _most_bytes(self, scope: Scope) -> int:
        if _path(scope) == SOUND_PATH:
            return self._sound_bytes
        is_upload = scope["method"] == "PUT" and _path(scope).startswith(AUDIO_PATH)
        return self._upload_bytes if is_upload else MAX_BODY_BYTES

    def _admit(self, scope: Scope, headers: Headers) -> Caller:
        address = scope["client"][0] if scope.get("client") else "unknown"
        if _is_signed(scope):
            caller = ANYBODY
        else:
            try:
                caller = self._keys.caller(headers.get("authorization", ""))
            except Refusal:
                self._limit(f"address {address}")
                raise
        self._limit(f"key {caller.name}" if caller.name else f"address {address}")
        return caller

    def _limit(self, sender: str) -> None:
        wait_s = self._rates.take(sender, time.monotonic()) if self._rates is not None else 0
        if wait_s:
            seconds = ceil(wait_s)
            detail = f"too many requests: ask again in {seconds} s"
            raise Refusal(429, "too-often", detail, Retry_After=str(seconds))


def _path(scope: Scope) -> str:
    """Return the path within our application, wherever that is mounted."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _is_signed(scope: Scope) -> bool:
    """Whether this is the reading of a link, whose signature is its key; writing needs ours."""
    return scope["method"] in READS and _path(scope).startswith(AUDIO_PATH)


def _too_large(limit: int) -> Refusal:
    detail = f"the body is too large: at most {limit} bytes"
    return Refusal(413, "too-large", detail, Connection="close")  # else all of it would be awaited


def _counted(receive: Receive, limit: int) -> Receive:
    """Have reading fail once a body proves too large, whatever its header said."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return counted


class SafeHeaders:
    """Middleware: has browsers load nothing from elsewhere but sounds, and guess no types."""

    def __init__(self, app: ASGIApp, sounds: str = "", fetched: str | None = None) -> None:
        """``sounds`` is the origin of links to sounds, if that is not this service.

        ``fetched`` is what the page's scripts may read besides; unset: the same, for waveforms.
        """
        self._app = app
        fetched = sounds if fetched is None else fetched
        self._headers = {
            "Content-Security-Policy": (
                "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
                f"frame-ancestors 'none'; form-action 'self'; media-src 'self' blob: {sounds}; "
                f"connect-src 'self' {fetched}"
            ).strip(),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the headers to an answer; what the API says is not to be stored."""

        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if _path(scope).startswith(GUARDED):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, add if scope["type"] == "http" else send)
