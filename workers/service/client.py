"""Asking a running query service."""

import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
from pydantic import SecretStr

from audiofuse.core.errors import ConfigurationError, QueryError, Unavailable
from audiofuse.core.settings import Settings

log = logging.getLogger(__name__)

TIMEOUT_S = 30  # to answer a question; lower: the next service is asked sooner
SOUND_TIMEOUT_S = 180  # to receive a sound, decode it and encode it
NOT_ALLOWED = {401, 403}  # statuses that speak of the key
AT_FAULT = {404, 408, 413, 422}  # statuses that speak of the question

Hits = list[dict[str, Any]]
Answer = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Access:
    """How a service lets us in: our key, and by which certificates it is known."""

    key: SecretStr | None = None
    ca_file: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return what the settings say."""
        return cls(settings.search_key, settings.ca_file)


ANYBODY = Access()


def ask(search_url: str, query: str, limit: int = 10) -> Hits:
    """Return the hits for a sentence, best first; see ``find``."""
    return find(search_url, {"q": query, "limit": limit})


def find(
    search_url: str,
    options: Mapping[str, Any],
    sound: Path | None = None,
    access: Access = ANYBODY,
) -> Hits:
    """Return the hits of ``answer``."""
    hits: Hits = answer(search_url, options, sound, access)["hits"]
    return hits


def answer(
    search_url: str,
    options: Mapping[str, Any],
    sound: Path | None = None,
    access: Access = ANYBODY,
) -> Answer:
    """Return what the first service that answers says: the hits, best first, and more.

    ``options`` are those of ``POST /v1/search``, or of ``/v1/search/sound`` with a ``sound``.
    Raises ``QueryError`` when the question is refused, ``ConfigurationError`` when the key is, and
    ``Unavailable`` when nobody answers.
    """
    return _first_to_answer(search_url, lambda url: _find(url, options, sound, access))


def service_urls(search_url: str) -> list[str]:
    """Return the query services that the setting names."""
    return [url.strip().rstrip("/") for url in search_url.split(",")]


def replicas(url: str) -> list[str]:
    """Return the addresses behind a query service's URL; ``Unavailable`` if it has none.

    Where a name has addresses of both families, those of IPv4 stand for all.
    """
    try:
        found = socket.getaddrinfo(httpx.URL(url).host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(f"{url} has no address: {error}") from error
    ipv4 = {str(address[0]) for family, *_, address in found if family is socket.AF_INET}
    return sorted(ipv4 or {str(address[0]) for *_, address in found})


def has_loaded(url: str, version: str, address: str, access: Access = ANYBODY) -> bool:
    """Whether the query service at an address of ``url`` has loaded an encoder version.

    Raises ``Unavailable`` if it is away.
    """
    named = httpx.URL(f"{url}/readyz", params={"version": version})
    request = httpx.Request(
        "GET", named.copy_with(host=address), headers={"Host": named.netloc.decode()},
        extensions={"sni_hostname": named.host},
    )  # fmt: skip
    return _send(request, access).is_success


def tell(search_url: str, said: Mapping[str, Any], access: Access = ANYBODY) -> int:
    """Tell the first service that answers what fits a question; return how much it kept.

    ``said`` is the body of ``POST /v1/feedback``. Raises what ``find`` does; a service that keeps
    no feedback refuses it.
    """
    return _first_to_answer(search_url, lambda url: _tell(url, said, access))


def _first_to_answer(search_url: str, ask: Callable[[str], T]) -> T:
    """Ask one service after the other; what the last one raises is raised."""
    *others, last = service_urls(search_url)
    for url in others:
        try:
            return ask(url)
        except Unavailable as error:
            log.warning("%s", error)
    return ask(last)


def _tell(url: str, said: Mapping[str, Any], access: Access) -> int:
    request = httpx.Request("POST", f"{url}/v1/feedback", json=said, headers=_headers(access))
    kept: int = _checked(url, _send(request, access)).json()["kept"]
    return kept


def _headers(access: Access) -> dict[str, str]:
    return {"Authorization": f"Bearer {access.key.get_secret_value()}"} if access.key else {}


def _checked(url: str, answer: httpx.Response) -> httpx.Response:
    """Return an answer that is good; raise what it says otherwise."""
    if answer.status_code in NOT_ALLOWED:
        raise ConfigurationError(f"{url}: {_told(answer)} (AUDIOFUSE_SEARCH_KEY)")
    if answer.status_code in AT_FAULT:
        raise QueryError(_told(answer))
    if answer.is_error:
        raise Unavailable(f"the query service says {answer.status_code}: {_told(answer)}")
    return answer


def _find(url: str, options: Mapping[str, Any], sound: Path | None, access: Access) -> Answer:
    headers = _headers(access)
    if sound is None:
        request = httpx.Request("POST", f"{url}/v1/search", json=options, headers=headers)
    else:
        request = httpx.Request(
            "POST", f"{url}/v1/search/sound", params=options, headers=headers,
            content=_content(sound),
        )  # fmt: skip
    received = _send(request, access, SOUND_TIMEOUT_S if sound else TIMEOUT_S)
    told: Answer = _checked(url, received).json()
    return told


def _content(sound: Path) -> bytes:
    try:
        return sound.read_bytes()
    except OSError as error:
        raise QueryError(f"cannot read {sound}: {error.strerror}") from error


def _told(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.text


def _send(request: httpx.Request, access: Access, timeout_s: float = TIMEOUT_S) -> httpx.Response:
    verify = ssl.create_default_context(cafile=access.ca_file) if access.ca_file else True
    try:
        with httpx.Client(timeout=timeout_s, verify=verify) as client:
            return client.send(request)
    except httpx.TransportError as error:
        raise Unavailable(
            f"no query service answers at {request.url.copy_with(path='/', query=None)} ({error}); "
            "is `audiofuse up` running?"
        ) from error
