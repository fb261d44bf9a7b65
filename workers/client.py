"""Asking a running query service."""

from typing import Any

import httpx

from core.errors import QueryError, Unavailable
from core.query import check_query

TIMEOUT_S = 30
UNPROCESSABLE = 422


def ask(search_url: str, query: str, top: int) -> list[dict[str, Any]]:
    """Return the hits for a sentence, best first.

    Raises ``QueryError`` when the question is refused, ``Unavailable`` when nobody answers.
    """
    check_query(query, top)
    try:
        answer = httpx.get(
            f"{search_url}/v1/search", params={"q": query, "top": top}, timeout=TIMEOUT_S
        )
    except httpx.TransportError as error:
        raise Unavailable(
            f"no query service answers at {search_url} ({error}); is `audiofuse up` running?"
        ) from error
    if answer.status_code == UNPROCESSABLE:
        raise QueryError(answer.json().get("error", answer.text))
    if answer.is_error:
        raise Unavailable(f"the query service says {answer.status_code}: {answer.text}")
    hits: list[dict[str, Any]] = answer.json()["hits"]
    return hits
