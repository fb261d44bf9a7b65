"""Under which keys something may be put: sounds and sidecars, where a listing would show them."""

import unicodedata

from audiofuse.core.items import is_audio, is_sidecar
from audiofuse.core.storage.store import CANNOT_BE_SHOWN, MAX_KEY_BYTES
from audiofuse.core.storage.temporary import is_temporary


def flaw(key: str) -> str:
    """Return what is wrong with a key in words, empty if nothing is."""
    if any(unicodedata.category(character) in CANNOT_BE_SHOWN for character in key):
        return "a key has no control characters"
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"a key has at most {MAX_KEY_BYTES} bytes"
    if any(not part or part.startswith(".") for part in key.split("/")):
        return "no part of a key is empty or begins with a dot"
    if is_temporary(key) or not (is_audio(key) or is_sidecar(key)):
        return "it names neither a sound nor a sidecar: the suffix tells, e.g. .wav or .json"
    return ""
