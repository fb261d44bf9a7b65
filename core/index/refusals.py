"""Whose fault it is that Qdrant refuses: its own, or that of the very thing that was sent.

    no answer, or none of Qdrant's ───────────────> Unavailable
    404 that names the collection ────────────────> GenerationGone, which is Unavailable, too
    400, 413, 422 of many things at once ─────────> as it is: whoever sent them asks for each alone
    400 of strict mode ───────────────────────────> Unavailable: it speaks of the server's limits
    400, 413, 422 of one thing alone ─────────────> as it is: a bug, the thing's own
    401, 403, 404, 408, 409, 429, 5xx, 507, ... ──> Unavailable, with what to do about it

So no point pays for a wrong key, a lock, a slow node or a full disk: it waits.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from audiofuse.core.errors import Unavailable

NOT_FOUND, TOO_MANY_REQUESTS = 404, 429
OF_WHAT_WAS_SENT = frozenset({400, 413, 422})
STRICT_MODE = "Help: "  # in the text of each refusal of strict mode, and of no other
WIDEN = "strict mode forbids it: widen the limits of the collection"
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
TRUST = "set AUDIOFUSE_CA_FILE to the authority that signed its certificate"
ADVICE = {
    401: "set AUDIOFUSE_QDRANT_API_KEY to the key of the server",
    403: "unlock the server if it is locked for writing; else set AUDIOFUSE_QDRANT_API_KEY to a "
    "key that may do this",
    404: "AUDIOFUSE_QDRANT_URL must be the address of a Qdrant",
    408: "it takes longer than it may: look at the load of its nodes",
    TOO_MANY_REQUESTS: "raise the rate limit of the collection, or run fewer workers",
    507: "its disk is full: make room",
}
WAIT = "see its log"
SAID_CHARACTERS = 300  # of a refusal are told: all of Qdrant's own, the beginning of a proxy's page


class GenerationGone(Unavailable):
    """The generation was dropped, or is not made yet: look again which there are."""


@contextmanager
def refusals(client: QdrantClient, collection: str = "", *, many: bool = False) -> Iterator[None]:
    """Raise what ``client`` raises as ours, or as it is where what was sent is at fault.

    ``collection`` is the one that is asked, if it is one; ``many``: things that could be sent each
    alone are sent together, so that a refusal of all does not tell which of them it means.
    """
    where = client.init_options.get("url") or "here"
    try:
        yield
    except ResponseHandlingException as error:
        advice = f"; {TRUST}" if UNTRUSTED in str(error.source) else ""
        raise Unavailable(f"Qdrant does not answer at {where}: {error.source}{advice}") from error
    except QdrantException as error:  # what its client makes of 429 with Retry-After
        raise Unavailable(_message(where, TOO_MANY_REQUESTS, str(error))) from error
    except UnexpectedResponse as error:
        status, text = error.status_code or 0, error.content.decode(errors="replace")
        if status == NOT_FOUND and collection and collection in text:
            raise _gone(collection) from error
        if status in OF_WHAT_WAS_SENT and (many or STRICT_MODE not in text):
            raise
        raise Unavailable(_message(where, status, text)) from error
    except ValueError as error:  # of the engine in this process' memory
        said = str(error)  # of the collection of items, or of that of moments
        if collection and f"Collection {collection}" in said and "not found" in said:
            raise _gone(collection) from error
        raise


def _gone(collection: str) -> GenerationGone:
    return GenerationGone(f"there is no collection {collection}")


def _message(where: str, status: int, text: str) -> str:
    advice = WIDEN if status in OF_WHAT_WAS_SENT else ADVICE.get(status, WAIT)
    return f"Qdrant at {where} refuses with {status}: {text[:SAID_CHARACTERS]!r}; {advice}"
