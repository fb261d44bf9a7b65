"""Who may ask, for what, and where.

Keys are given as ``name:key``, ``name:key:scope+scope`` or ``name:key:scope@folder/+folder/``,
separated by commas, and sent as ``Authorization: Bearer KEY``. Scopes: ``search`` asks, ``audio``
gets links to the sounds besides, ``export`` gets the metadata of all items at once, ``feedback``
may say what fits, ``repair`` sees what was rejected, ``upload`` writes to the bucket. A key without
scopes has all but the last. To a key with folders nothing else exists; a comma, plus or percent
sign in their names is written as in a URL (``%2C``). Without keys everybody may do everything;
``audiofuse serve`` allows that on the loopback only.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote

from pydantic import SecretStr

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.query import Place, Places
from audiofuse.workers.service.admission.problems import Refusal

MIN_KEY_CHARACTERS = 16
MAY_NOT_HEAR = "this key may search, but not hear: scope audio"
MOST_PLACES = 20  # of one key: each is a condition of every question


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
    places: Places = None  # outside of which nothing exists to it

    def require(self, right: Right) -> None:
        """Raise ``Refusal`` if its key does not allow that."""
        if right not in self.rights:
            lacking = f"this key lacks the scope {right}"
            raise Refusal(403, "not-allowed", MAY_NOT_HEAR if right is Right.AUDIO else lacking)

    def reaches(self, key: str) -> bool:
        """Whether an object of the bucket may be known to it."""
        return self.places is None or any(key.startswith(each.prefix) for each in self.places)


ANYBODY = Caller("", frozenset(Right))
UNSAID = frozenset(Right) - {Right.UPLOAD}  # of a key without scopes


class Keys:
    """The keys that are valid; only their hashes are kept."""

    def __init__(
        self, listed: SecretStr | None, bucket_of: Callable[[str], str] = lambda _: ""
    ) -> None:
        """Read the setting; ``ConfigurationError`` names what is wrong with it, but no key.

        ``bucket_of`` tells in which bucket a folder lies, if the service knows of any.
        """
        entries = listed.get_secret_value().split(",") if listed else []
        self._callers = dict(
            _read_key(entry.strip(), bucket_of) for entry in entries if entry.strip()
        )

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._callers)

    @property
    def are_limited(self) -> bool:
        """Whether to any of them something does not exist."""
        return any(caller.places is not None for caller in self._callers.values())

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


def _read_key(entry: str, bucket_of: Callable[[str], str]) -> tuple[bytes, Caller]:
    name, _, rest = entry.partition(":")
    key, _, allowed = rest.partition(":")
    rights, is_limited, folders = allowed.partition("@")
    if not name or len(key) < MIN_KEY_CHARACTERS:
        raise ConfigurationError(
            "AUDIOFUSE_API_KEYS: each is name:key, name:key:scope+scope or "
            "name:key:scope+scope@folder/, "
            f"and a key has at least {MIN_KEY_CHARACTERS} characters"
        )
    try:
        given = frozenset(map(Right, rights.split("+"))) if rights else UNSAID
    except ValueError:
        known = ", ".join(Right)
        raise ConfigurationError(
            f"AUDIOFUSE_API_KEYS: {name} has other scopes than {known}"
        ) from None
    places = _read_places(name, folders, bucket_of) if is_limited else None
    return _digest(key), Caller(name, given, places)


def _read_places(name: str, folders: str, bucket_of: Callable[[str], str]) -> tuple[Place, ...]:
    """Read folders: whole ones only, so that sounds and sidecars are on the same side."""
    prefixes = [unquote(each) for each in folders.split("+")]
    if not all(each.strip("/") and each.endswith("/") for each in prefixes):
        raise ConfigurationError(
            f"AUDIOFUSE_API_KEYS: {name} has after its @ what is no folder: each ends with a /, as "
            "in search@field/2026/+studio/"
        )
    if len(prefixes) > MOST_PLACES:
        raise ConfigurationError(
            f"AUDIOFUSE_API_KEYS: {name} has {len(prefixes)} folders: at most {MOST_PLACES}"
        )
    return tuple(Place(each, bucket_of(each)) for each in prefixes)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
