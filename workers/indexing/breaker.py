"""The breaker: many keys in a row with one and the same error are an outage, not bad objects.

A bug costs an object its place in the index. What refuses everything, in words that nobody knew
beforehand, would so cost all that is uploaded meanwhile. So a run of different keys that fail
alike, with no success between them, opens the breaker: they wait, until something works.
"""

import logging
import re
import threading
from collections.abc import Callable, Collection

from audiofuse.workers.telemetry.metrics import OUTAGE

log = logging.getLogger(__name__)

# Different keys in a row with one error that are an outage. Lower: a few bad objects of one kind,
# uploaded together, wait for an operator. Higher: so many good objects more may be given up first.
KEYS = 5
OF_ONE_OBJECT = re.compile(r"[0-9a-fA-F-]{8,}|\d+")  # ids, hashes and numbers


class Breaker:
    """Counts what fails alike in a row. Many threads may tell it."""

    def __init__(self, opens: Callable[[Collection[str]], None] = lambda _: None) -> None:
        """Begin closed; ``opens`` is told the keys of the run that is an outage, before it is one.

        What ``opens`` raises keeps the breaker closed.
        """
        self._opens = opens
        self._lock = threading.Lock()
        self._alike = ""  # what the errors of the run have in common
        self._run: dict[str, None] = {}  # its keys, in their order
        self.is_open = False

    def failed(self, key: str, error: Exception) -> bool:
        """Note that ``key`` met a bug; return whether that is an outage."""
        alike = _words(key, error)
        with self._lock:
            if alike != self._alike:
                self._close()
                self._alike = alike
            self._run[key] = None
            if len(self._run) >= KEYS and not self.is_open:
                self._opens(self._run.keys())
                self._open(alike)
            return self.is_open

    def passed(self) -> None:
        """Note that an object was dealt with: not everything fails."""
        if not self._run:
            return  # almost always; a lock for each message would be dear
        with self._lock:
            self._close()

    def _open(self, alike: str) -> None:
        self.is_open = True
        OUTAGE.set(1)
        log.error(
            "%d objects in a row met the same error, so it is not theirs: %s. They wait, and "
            "nothing is rejected. Look at Qdrant, the bucket, Redis and the traceback above; "
            "indexing goes on by itself once that is mended",
            len(self._run), alike,
        )  # fmt: skip

    def _close(self) -> None:
        if self.is_open:
            OUTAGE.set(0)
            log.warning("the outage is over: %s", self._alike)
        self._run, self._alike, self.is_open = {}, "", False


def _words(key: str, error: Exception) -> str:
    """Return an error's words without what is different for each object."""
    words = str(error).replace(key, "")
    return f"{type(error).__name__}: {OF_ONE_OBJECT.sub('#', words)}"
