"""What is live: the generation that is searched, and the encoder that made it.

    alias ──> live generation ──> its version's encoder, if it is loaded; until then what was
                                  searched before, which is kept until its successor is dropped

So one answer never mixes versions, and no query waits while an encoder is loaded.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from audiofuse.core.bundles.document import POLL_S
from audiofuse.core.errors import AudiofuseError
from audiofuse.core.index.index import Generation, GenerationGone, Index
from audiofuse.core.retrying import BackOff, retry
from audiofuse.core.search.loaded import LoadedEncoder, LoadedEncoders

log = logging.getLogger(__name__)

# Pauses between tries to load what cannot be loaded. Longer: less of a burden on a registry that is
# away; shorter: sooner there again.
PREPARED_AGAIN = BackOff(first_s=2 * POLL_S, most_s=32)
T = TypeVar("T")
NEVER = (-math.inf, None)


class Live:
    """Knows the live generation and keeps encoders loaded. Many threads may ask at once."""

    def __init__(
        self, index: Index, encoders: LoadedEncoders, wanted: Callable[[], Iterable[str]]
    ) -> None:
        """Follow the alias of ``index``; ``wanted`` tells which versions may soon be live."""
        self._index = index
        self._encoders = encoders
        self._wanted = wanted
        self._resolving = threading.Lock()  # whoever has it asks for the alias; nobody waits for it
        self._resolved: tuple[float, Generation | None] = NEVER
        self._last: tuple[Generation, LoadedEncoder] | None = None  # what was searched last

    def ask(self, work: Callable[[Generation, LoadedEncoder], T]) -> T | None:
        """Work with what is live; once more if that was dropped; ``None`` if nothing is."""
        try:
            return work(*chosen) if (chosen := self._choose()) else None
        except GenerationGone:
            self._forget()
            return work(*chosen) if (chosen := self._choose()) else None

    def _choose(self) -> tuple[Generation, LoadedEncoder] | None:
        """Choose the live generation, or the one before while the live one's encoder is loaded."""
        live = self._resolve()
        if live is None:
            return None
        encoder = self._encoders.get(live.version)
        if encoder is None and self._last:
            return self._last
        self._last = live, encoder or self._encoders.load(live.version)
        return self._last

    def _resolve(self) -> Generation | None:
        """Resolve the alias, at most once in a while.

        One thread asks; the others go on with what was live a moment ago, however long that takes.
        """
        known = self._resolved
        at, live = known
        if time.monotonic() - at <= POLL_S:
            return live
        mine = self._resolving.acquire(blocking=False)
        try:
            if mine or known is NEVER:
                live = self._index.live()
                if self._resolved is known:  # else it was forgotten, or is known better, meanwhile
                    self._resolved = time.monotonic(), live
        finally:
            if mine:
                self._resolving.release()
        return live

    def _forget(self) -> None:
        self._resolved, self._last = NEVER, None

    @property
    def loaded(self) -> frozenset[str]:
        """The versions whose encoders are loaded."""
        return self._encoders.versions

    def run_on(self) -> dict[str, str]:
        """Return on what the encoders run that are loaded, by version."""
        return self._encoders.run_on()

    def prepare(self) -> None:
        """Load the encoders that are or may soon be needed, and let go of all others."""
        needed = {self._last[0].version} if self._last else set[str]()
        for version in self._needed():
            self._encoders.load(version)
            needed.add(version)
        self._encoders.keep(needed)

    def _needed(self) -> Iterator[str]:
        if live := self._resolve():
            yield live.version
        yield from self._wanted()

    def follow(self, prepared: Callable[[], object] = int) -> None:
        """Prepare again and again, for ever; run this in a thread. Whatever fails, search goes on.

        ``prepared`` is called after each time that all could be loaded. What cannot be loaded is
        tried more and more seldom.
        """

        def work() -> None:
            self.prepare()
            prepared()

        while True:
            time.sleep(POLL_S)
            retry(work, (Exception,), PREPARED_AGAIN, _tell_not_prepared, time.sleep)


def _tell_not_prepared(error: Exception, _pause_s: float) -> None:
    """Log what keeps versions from being loaded, with its traceback where it is a bug."""
    trace = None if isinstance(error, AudiofuseError) else error
    log.warning("searching goes on with what is loaded: %s", error, exc_info=trace)
