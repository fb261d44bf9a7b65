"""Who may ask, how often and how much; and the headers that every answer has.

Keys are given as ``name:key`` or ``name:key:scope+scope``, separated by commas, and sent as
``Authorization: Bearer KEY``. Scopes: ``search`` asks, ``audio`` gets links to the sounds besides,
``export`` gets the metadata of all items at once, ``feedback`` may say what fits, ``repair`` sees
what was rejected, ``upload`` writes to the bucket. A key without scopes has all but the last.
Without keys everybody may do everything; ``audiofuse serve`` allows that on the loopback only.
"""

import hashlib
import hmac
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiofuse.core.errors import ConfigurationError
from audiofuse.workers.service.admission.problems import Refusal

GUARDED = "/v1/"
SOUND_PATH = "/v1/search/sound"
AUDIO_PATH = "/v1/audio/"  # links to sounds, which are signed
READS = {"GET", "HEAD", "OPTIONS"}
MAX_BODY_BYTES = 64 * 1024  # of a question in JSON
MIN_KEY_CHARACTERS = 16
BURST_S = 5  # of its rate may a sender use at once
SENDERS_REMEMBERED = 10_000


class Right(StrEnum):
    """What a key allows."""

    SEARCH = "search"
    AUDIO = "audio"
    EXPORT = "export"
    FEEDBACK = "feedback"
    REPAIR = "repair"
    UPLOAD = "upload"  # the only one that changes the bucket: a key has it if it says so


@dataclass(frozen=True)
class Caller:
    """Whose key it is, and what it allows."""

    name: str
    rights: frozenset[Right]


ANYBODY = Caller("", frozenset(Right))
UNSAID = frozenset(Right) - {Right.UPLOAD}  # of a key without scopes


class Keys:
    """The keys that are valid; only their hashes are kept."""

    def __init__(self, listed: SecretStr | None) -> None:
        """Read the setting; ``ConfigurationError`` names what is wrong with it, but no key."""
        entries = listed.get_secret_value().split(",") if listed else []
        self._callers = dict(_read_key(entry.strip()) for entry in entries if entry.strip())

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._callers)

    def caller(self, authorization: str) -> Caller:
        """Return who sends this header; ``Refusal`` if it is nobody that we know."""
        if not self._callers:
            return ANYBODY
        scheme, _, key = authorization.partition(" ")
        digest, found = _digest(key.strip()), None
        for known, caller in self._callers.items():
            if hmac.compare_digest(known, digest):
                found = caller
        if scheme.lower() != "bearer" or found is None:
            detail = "this service needs a valid API key: send Authorization: Bearer KEY"
            raise Refusal(401, "no-key", detail, WWW_Authenticate="Bearer")
        return found


def _read_key(entry: str) -> tuple[bytes, Caller]:
    name, _, rest = entry.partition(":")
    key, _, rights = rest.partition(":")
    if not name or len(key) < MIN_KEY_CHARACTERS:
        raise ConfigurationError(
            "AUDIOFUSE_API_KEYS: each is name:key or name:key:scope+scope, "
            f"and a key has at least {MIN_KEY_CHARACTERS} characters"
        )
    try:
        given = frozenset(map(Right, rights.split("+"))) if rights else UNSAID
    except ValueError:
        known = ", ".join(Right)
        raise ConfigurationError(
            f"AUDIOFUSE_API_KEYS: {name} has other scopes than {known}"
        ) from None
    return _digest(key), Caller(name, given)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


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

    def __init__(self, app: ASGIApp, sounds: str = "") -> None:
        """``sounds`` is the origin of links to sounds, if that is not this service."""
        self._app = app
        self._headers = {
            "Content-Security-Policy": (
                "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
                f"frame-ancestors 'none'; form-action 'self'; media-src 'self' blob: {sounds}; "
                f"connect-src 'self' {sounds}"
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
