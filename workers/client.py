"""Asking a running query service."""

import logging
from typing import Any

import httpx

from core.errors import QueryError, Unavailable
from core.query import check_query

log = logging.getLogger(__name__)

TIMEOUT_S = 30
UNPROCESSABLE = 422


def ask(search_url: str, query: str, top: int) -> list[dict[str, Any]]:
    """Return the hits for a sentence, best first, from the first service that answers.

    Raises ``QueryError`` when the question is refused, ``Unavailable`` when nobody answers.
    """
    check_query(query, top)
    *others, last = service_urls(search_url)
    for url in others:
        try:
            return _ask(url, query, top)
        except Unavailable as error:
            log.warning("%s", error)
    return _ask(last, query, top)


def service_urls(search_url: str) -> list[str]:
    """Return the query services that the setting names."""
    return [url.strip().rstrip("/") for url in search_url.split(",")]


def has_loaded(url: str, version: str) -> bool:
    """Whether a query service has loaded an encoder version; ``Unavailable`` if it is away."""
    return _get(url, "/readyz", version=version).is_success


def _ask(url: str, query: str, top: int) -> list[dict[str, Any]]:
    answer = _get(url, "/v1/search", q=query, top=str(top))
    if answer.status_code == UNPROCESSABLE:
        raise QueryError(answer.json().get("error", answer.text))
    if answer.is_error:
        raise Unavailable(f"the query service says {answer.status_code}: {answer.text}")
    hits: list[dict[str, Any]] = answer.json()["hits"]
    return hits


def _get(url: str, path: str, **parameters: str) -> httpx.Response:
    try:
        return httpx.get(url + path, params=parameters, timeout=TIMEOUT_S)
    except httpx.TransportError as error:
        raise Unavailable(
            f"no query service answers at {url} ({error}); is `audiofuse up` running?"
        ) from error
