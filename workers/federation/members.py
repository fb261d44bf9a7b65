"""The deployments that a federation asks, and asking one of them within its deadline.

A member that was too slow, or gone, is not waited for again until it has answered a question in
time, which is put to it aside: so one that hangs costs one answer its deadline, and no other.
"""

import asyncio
import logging
import re
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.workers.telemetry.metrics import MEMBER_DURATION

log = logging.getLogger(__name__)

# Bytes of one answer. Higher: a broken member may take more memory; lower: pages of hits with long
# sidecars lack members.
MOST_BYTES = 64 * 1024**2
# Bytes of a member's answers that are being received at once; likewise.
MOST_HELD_BYTES = 256 * 1024**2
CONNECTIONS = 128  # to each member
SOUND_S = 60.0  # to receive a sound and encode it; see AUDIOFUSE_ASK_S
TRY_S = 1.0  # at least between two tries to reach who is away
READY_S = 1.5  # that /readyz waits; lower than whoever asks for it waits
ANSWERS = "answers"
CHUNK_BYTES = 256 * 1024
SERVER_ERROR = 500
NOT_ALLOWED = {401, 403}
NAME = re.compile(r"[A-Za-z0-9._:\[\]-]{1,100}")
IDENTITY = {"Accept-Encoding": "identity"}  # what is unpacked could be any number of bytes


@dataclass(frozen=True)
class Member:
    """A deployment: what it is called, where its search service is, and our key there."""

    name: str
    url: str
    key: str | None = field(default=None, repr=False)


class Missing(Exception):  # noqa: N818 - what the answer lacks
    """A member has no part in an answer; ``reason`` says why, to whoever asked."""

    def __init__(self, member: str, reason: str, outcome: str = "broken") -> None:
        super().__init__(f"{member}: {reason}")
        self.member = member
        self.reason = reason
        self.outcome = outcome


class Refused(Missing):
    """It answered that it will not: ``status`` and ``detail`` are its own."""

    def __init__(self, member: str, status: int, detail: str) -> None:
        reason = "refuses our key" if status in NOT_ALLOWED else f"answers {status}: {detail}"
        super().__init__(member, reason, "refused")
        self.status = status
        self.detail = detail


@dataclass(frozen=True)
class Asked:
    """What one member is asked: JSON as ``body``, a sound as ``file``, or neither."""

    path: str
    params: Sequence[tuple[str, str]] = ()
    body: bytes | None = None
    file: Path | None = None

    def request(
        self, client: httpx.AsyncClient, headers: dict[str, str], patience_s: float
    ) -> httpx.Request:
        """Return it as a request of this client's."""
        method = "POST" if self.file or self.body is not None else "GET"
        if self.body is not None:
            headers = headers | {"Content-Type": "application/json"}
        return client.build_request(
            method, self.path, params=list(self.params), headers=headers, timeout=patience_s,
            content=_read(self.file) if self.file else self.body,
        )  # fmt: skip


class _Connection:
    """Whether a request had a connection made, by what httpcore tells of it."""

    is_new = False

    async def note(self, event: str, _details: object) -> None:
        """Note an event."""
        if event == "connection.connect_tcp.started":
            self.is_new = True


TRIAL = Asked("/v1/search", [("q", "a sound"), ("limit", "1")])  # takes what questions do


class Line:
    """The line to one member."""

    def __init__(self, member: Member, patience_s: float, ca_file: Path | None = None) -> None:
        """Wait ``patience_s`` for each answer of ``member``; needs an event loop once it asks."""
        self.name = member.name
        self._patience_s = patience_s
        self._key = {"Authorization": f"Bearer {member.key}"} if member.key else {}
        self._http = httpx.AsyncClient(
            base_url=member.url,
            headers=IDENTITY,
            timeout=patience_s,
            verify=ssl.create_default_context(cafile=ca_file) if ca_file else True,
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
            follow_redirects=False,  # they could lead anywhere, with our key
        )
        self._held = 0
        self._away = ""  # why nobody waits for it
        self._tried = 0.0
        self._trial: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> bytes:
        """Return the body of a good answer; ``Missing`` in all other cases."""
        if self._away:
            self._try_again()
            raise Missing(self.name, self._away, "away")
        return await self._measured(asked)

    async def opened(
        self, asked: Asked, headers: dict[str, str], patience_s: float, *, with_key: bool
    ) -> httpx.Response:
        """Return a good answer whose body is not read yet, and which must be closed.

        Its parts may be ``patience_s`` apart. ``Missing`` in all other cases.
        """
        headers = headers | (self._key if with_key else {})
        try:
            answer = await self._sent(asked, headers, patience_s)
            if answer.is_success:
                return answer
            try:
                raise Refused(self.name, answer.status_code, told(await self._body(answer)))
            finally:
                await answer.aclose()
        except httpx.TransportError as error:
            raise self._gone(error) from error

    async def health(self) -> str:
        """Return whether it is ready, in words."""
        request = self._http.build_request("GET", "/readyz", timeout=READY_S)
        try:
            async with asyncio.timeout(READY_S):
                answer = await self._http.send(request, stream=True)
                await answer.aclose()
        except (TimeoutError, httpx.TransportError):
            return "does not answer"
        return ANSWERS if answer.is_success else f"answers {answer.status_code}"

    async def close(self) -> None:
        """Close the connections."""
        if self._trial:
            self._trial.cancel()
        await self._http.aclose()

    async def _measured(self, asked: Asked) -> bytes:
        started, outcome = time.perf_counter(), "cancelled"
        try:
            body = await self._within(asked)
        except Missing as missing:
            outcome = missing.outcome
            raise
        else:
            outcome = "answered"
            return body
        finally:
            took = time.perf_counter() - started
            MEMBER_DURATION.labels(self.name, outcome).observe(took)

    async def _within(self, asked: Asked) -> bytes:
        """Ask within the deadline; a member that does not keep it is away from then on."""
        patience_s = max(self._patience_s, SOUND_S) if asked.file else self._patience_s
        try:
            async with asyncio.timeout(patience_s):
                body = await self._received(asked, patience_s)
        except TimeoutError:
            reason = f"did not answer within {patience_s:g} s"
            raise self._left_out(reason, "slow", reason) from None
        except httpx.TransportError as error:
            raise self._gone(error) from error
        self._away = ""
        return body

    def _gone(self, error: httpx.TransportError) -> Missing:
        return self._left_out("does not answer", "away", error)

    def _left_out(self, reason: str, outcome: str, why: object) -> Missing:
        """Let nobody wait for it from now on; that is logged once."""
        if not self._away:
            log.warning("member %s is left out: %s", self.name, why)
        self._away = reason
        return Missing(self.name, reason, outcome)

    async def _received(self, asked: Asked, patience_s: float) -> bytes:
        answer = await self._sent(asked, self._key, patience_s)
        try:
            body = await self._body(answer)
        finally:
            await answer.aclose()
        if not answer.is_success:
            raise Refused(self.name, answer.status_code, told(body))
        return body

    async def _sent(
        self, asked: Asked, headers: dict[str, str], patience_s: float
    ) -> httpx.Response:
        """Send a question; once more where it met a kept connection that was just being closed.

        Then nothing of an answer came. It says nothing of the member, and every question may be
        put twice.
        """
        request = asked.request(self._http, headers, patience_s)
        line = _Connection()
        request.extensions["trace"] = line.note
        try:
            return await self._http.send(request, stream=True)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            if line.is_new:
                raise
        return await self._http.send(asked.request(self._http, headers, patience_s), stream=True)

    async def _body(self, answer: httpx.Response) -> bytes:
        """Return what was sent, as it was sent; ``Missing`` if it is too much."""
        body = bytearray()
        try:
            async for chunk in answer.aiter_raw():
                self._held += len(chunk)
                body += chunk
                if len(body) > MOST_BYTES or self._held > MOST_HELD_BYTES:
                    reason = f"answers more than {MOST_BYTES // 1024**2} MiB"
                    raise Missing(self.name, reason)
        finally:
            self._held -= len(body)
        return bytes(body)

    def _try_again(self) -> None:
        """Ask whoever is away a question of our own, for which nobody waits."""
        now = time.monotonic()
        if now - self._tried >= TRY_S and (self._trial is None or self._trial.done()):
            self._tried = now
            self._trial = asyncio.create_task(self._try())

    async def _try(self) -> None:
        try:
            await self._measured(TRIAL)
        except Refused as refused:
            if refused.status < SERVER_ERROR:
                self._away = ""  # it answers, and the next question learns how
        except Missing:
            pass  # it still is away, and was named
        if not self._away:
            log.info("member %s answers again", self.name)


def told(body: bytes) -> str:
    """Return what a problem says, as far as an answer can be read, and not too long."""
    try:
        return str(httpx.Response(200, content=body).json()["detail"])[:300]
    except (ValueError, KeyError, TypeError):
        return "without saying why"


async def _read(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield chunk


def read_members(settings: Settings) -> list[Member]:
    """Return the members that the settings name; ``ConfigurationError`` says what is wrong."""
    keys = _keys(settings)
    members = [_member(each.strip(), keys) for each in settings.ask.split(",") if each.strip()]
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{PREFIX}ASK: two members have one name: name=URL tells them")
    if unknown := set(keys) - set(names):
        raise ConfigurationError(f"{PREFIX}ASK_KEYS: no member is called {', '.join(unknown)}")
    return members


def _member(entry: str, keys: dict[str, str]) -> Member:
    name, _, rest = entry.partition("=")
    named = bool(rest) and "/" not in name
    text = rest if named else entry
    try:
        url = httpx.URL(text.rstrip("/"))
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"{PREFIX}ASK: {text!r} is no URL: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo or url.query:
        raise ConfigurationError(f"{PREFIX}ASK: {url.copy_with(userinfo=None)!s} is no http URL")
    name = name if named else url.netloc.decode()
    if not NAME.fullmatch(name):
        raise ConfigurationError(f"{PREFIX}ASK: {name!r} is no name: letters, digits, . _ -")
    return Member(name, str(url), keys.get(name))


def _keys(settings: Settings) -> dict[str, str]:
    listed = settings.ask_keys.get_secret_value().split(",") if settings.ask_keys else []
    pairs = [each.strip().rpartition(":") for each in listed if each.strip()]
    if any(not name or not key for name, _, key in pairs):
        raise ConfigurationError(f"{PREFIX}ASK_KEYS: each is name:key, by a member's name")
    return {name: key for name, _, key in pairs}
