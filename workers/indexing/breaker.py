"""What many objects meet alike: it is told of once, and is an outage, no fault of theirs.

The breaker: a bug costs an object its place in the index, and so does an object that may not be
read. What refuses everything, in words that nobody knew beforehand, would so cost all that is
uploaded meanwhile. So a run of different keys that fail alike, with no success between them, opens
the breaker: they wait, until something works.

The causes: what is known to be away, or to refuse, makes many wait, and one line says so.
"""

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from math import inf

from audiofuse.workers.telemetry.metrics import OUTAGE

log = logging.getLogger(__name__)

CAUSES = 100  # that are known to have been told of: raised, memory; lowered, more are told again
# Different keys in a row with one error that are an outage. Lower: a few bad objects of one kind,
# uploaded together, wait for an operator. Higher: so many good objects more may be given up first.
KEYS = 5
OF_ONE_OBJECT = re.compile(r"[0-9a-fA-F-]{8,}|\d+")  # ids, hashes and numbers


class Breaker:
    """Counts what fails alike in a row. Many threads may tell it."""

    def __init__(
        self,
        take_back: Callable[[Collection[str]], None] = lambda _: None,
        is_outage: Callable[[], bool] = lambda: True,
    ) -> None:
        """Begin closed; a run that ``is_outage`` denies to be one begins anew.

        ``take_back`` is given the keys of a run that is an outage, since verdicts may have been
        passed on them: before the breaker opens, and again before it closes, as threads may have
        been about to pass one. What it raises keeps the breaker as it is.
        """
        self._take_back = take_back
        self._is_outage = is_outage
        self._lock = threading.Lock()
        self._alike = ""  # what the errors of the run have in common
        self._run: dict[str, None] = {}  # its keys, in their order
        self.is_open = False

    def failed(self, key: str, error: Exception) -> bool:
        """Note that ``key`` met an error; return whether that is an outage."""
        alike = _words(key, error)
        with self._lock:
            if alike != self._alike:
                self._close()
                self._alike = alike
            if not self.is_open:
                self._run[key] = None
                if len(self._run) >= KEYS:
                    self._judge()
            return self.is_open

    def passed(self) -> None:
        """Note that an object was dealt with: not everything fails."""
        if not self._run:
            return  # almost always; a lock for each message would be dear
        with self._lock:
            self._close()

    def _judge(self) -> None:
        if not self._is_outage():
            self._run = {}
            return
        self._take_back(self._run.keys())
        self.is_open = True
        OUTAGE.inc()
        log.error(
            "%d objects in a row met the same error, so it is not theirs: %s. They wait, and "
            "nothing is rejected. Look at Qdrant, the bucket, Redis and the lines above; indexing "
            "goes on by itself once that is mended",
            len(self._run), self._alike,
        )  # fmt: skip

    def _close(self) -> None:
        if self.is_open:
            self._take_back(self._run.keys())
            OUTAGE.dec()
            log.warning("the outage is over: %s", self._alike)
        self._run, self._alike, self.is_open = {}, "", False


class Seats:
    """Of what a worker has in hand, how much may wait for the same bucket. For many threads.

    Where one bucket is all there is nothing that its messages could keep from being worked on.
    """

    def __init__(self, bucket_of: Callable[[str], str] = lambda _: "", most: float = inf) -> None:
        """Let ``most`` messages wait for each bucket, as ``bucket_of`` tells it of a key."""
        self._bucket_of = bucket_of
        self._most = most
        self._taken = Counter[str]()
        self._lock = threading.Lock()

    def are_taken(self, key: str) -> bool:
        """Whether so many wait for a key's bucket that others need not even try."""
        return self._taken[self._bucket_of(key)] >= self._most

    @contextmanager
    def taken(self, key: str) -> Iterator[None]:
        """Wait for the bucket of a key."""
        bucket = self._bucket_of(key)
        with self._lock:
            self._taken[bucket] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[bucket] -= 1


class Causes:
    """What messages wait for: told of once each, however many wait. Many threads may use it."""

    def __init__(self) -> None:
        """Begin with nothing that is waited for."""
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def met(self, key: str, error: Exception, pause_s: float) -> None:
        """Note that ``key`` waits for so many seconds, because of an error."""
        cause = _words(key, error)
        with self._lock:
            is_new = cause not in self._told
            if len(self._told) >= CAUSES:
                self._told.clear()
            self._told.add(cause)
        log.log(
            logging.WARNING if is_new else logging.DEBUG,
            "%s: again in %.0f s, %s%s",
            key, pause_s, error, "; what else waits for that is not told" if is_new else "",
        )  # fmt: skip

    def passed(self) -> None:
        """Note that an object was written: what comes from here on is told anew."""
        if not self._told:
            return
        with self._lock:
            over, self._told = self._told, set()
        for cause in over:
            log.info("nothing waits any more for: %s", cause)


def _words(key: str, error: Exception) -> str:
    """Return an error's words without what is different for each object."""
    words = str(error).replace(key, "")
    return f"{type(error).__name__}: {OF_ONE_OBJECT.sub('#', words)}"
