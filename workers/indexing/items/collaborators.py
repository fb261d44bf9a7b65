"""What a sync works with, in three groups: the bucket's side, the index's side, the encoder."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from audiofuse.core.audio.windows import OpenSound, Samples
from audiofuse.core.encoder.embeddings import EncodedItem, Floats, Fused
from audiofuse.core.errors import Rejected
from audiofuse.core.index.index import Generation, Point
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.windows import Cutting
from audiofuse.core.storage.store import Store
from audiofuse.workers.queue.dead_letters import DeadLetter


class ItemEncoder(Protocol):
    """What makes an item's vectors: an encoder on the device that many threads share.

    ``sound`` names what is encoded, should the device die of it: another state is another sound.
    """

    @property
    def fuses_stored_audio(self) -> bool:
        """See ``Encoder``."""

    def encode(
        self, sound: str, windows: Iterable[Samples], text: str, cutting: Cutting | None = None
    ) -> EncodedItem:
        """Encode a sound, given as windows of at most 10 s, and fuse it with its text.

        One that is cut has its moments handed over before this returns.
        """

    def fuse(self, sound: str, audio: Floats, text: str) -> EncodedItem:
        """Fuse a stored audio vector ``(audio_dim,)`` with a text."""

    def fuse_windows(self, sound: str, audio: Floats, text: str) -> Fused:
        """Fuse stored audio vectors of a sound's moments ``(moments, audio_dim)`` with a text."""


class Points(Protocol):
    """What keeps points: an ``Index``, or one that makes batches of what many threads ask of it."""

    def get(
        self, generation: Generation, ids: Sequence[str], *, vectors: bool = False
    ) -> dict[str, Point]:
        """See ``Index``."""

    def upsert(self, generation: Generation, points: Iterable[Point]) -> None:
        """See ``Index``."""

    def remove(self, generation: Generation, ids: Sequence[str]) -> None:
        """See ``Index``."""

    def count_moments(self, generation: Generation, item_id: str, state: str | None = None) -> int:
        """See ``Index``."""

    def seal_moments(
        self, generation: Generation, item_id: str, state: str, payload: Mapping[str, Any]
    ) -> None:
        """See ``Index``."""

    def remove_moments(self, generation: Generation, item_id: str, beyond: int = 0) -> None:
        """See ``Index``."""


class DeadLetterStore(Protocol):
    """Where verdicts are recorded: ``DeadLetters``."""

    def get(self, keys: Iterable[str]) -> dict[str, DeadLetter]:
        """See ``DeadLetters``."""

    def add(self, key: str, verdict: Rejected) -> None:
        """See ``DeadLetters``."""

    def clear(self, keys: Iterable[str]) -> None:
        """See ``DeadLetters``."""


class NoDeadLetters:
    """For whoever is interested in the index alone."""

    def get(self, keys: Iterable[str]) -> dict[str, DeadLetter]:
        """Find none."""
        del keys
        return {}

    def add(self, key: str, verdict: Rejected) -> None:
        """Keep nothing."""

    def clear(self, keys: Iterable[str]) -> None:
        """Forget nothing."""


class Report(Protocol):
    """What is told of outages: ``OutageReport``."""

    def meets(self, error: Exception) -> None:
        """See ``OutageReport``."""

    def works(self) -> None:
        """See ``OutageReport``."""


class NoReport:
    """For whoever is not part of a fleet."""

    def meets(self, error: Exception) -> None:
        """Tell nobody."""

    def works(self) -> None:
        """Tell nobody."""


# Decodes the sound of a key, which lies in a file and lasts so many seconds at most.
SoundOpener = Callable[[str, Path, float], AbstractContextManager[OpenSound]]


@dataclass(frozen=True)
class Limits:
    """What is too much for one item."""

    duration_s: float
    object_bytes: int


def open_here(key: str, path: Path, max_duration_s: float) -> AbstractContextManager[OpenSound]:
    """Decode in this process."""
    del key
    from audiofuse.core.audio.recording import open_recording  # noqa: PLC0415 - most never do

    return open_recording(path, max_duration_s)


def nowhere() -> None:
    """Know no other generation."""


@dataclass(frozen=True)
class BucketSide:
    """Where sounds come from.

    ``open_sound`` decodes, in this process or another. ``pause`` waits for some seconds for a burst
    of changes to end; what it returns is true if the worker stops.
    """

    store: Store
    limits: Limits
    open_sound: SoundOpener = open_here
    pause: Callable[[float], object] = time.sleep


@dataclass(frozen=True)
class IndexSide:
    """What is made to agree with the bucket: one generation of points, and the dead letters.

    ``elsewhere`` returns another generation, and who keeps its points, if its audio vectors are
    those that this generation's encoder would give. Recordings are cut by ``grid`` into moments;
    with ``thorough`` it is also looked after moments of items that have none.
    """

    points: Points
    generation: Generation
    letters: DeadLetterStore = field(default_factory=NoDeadLetters)
    elsewhere: Callable[[], tuple[Points, Generation] | None] = nowhere
    grid: Grid | None = None
    thorough: bool = False
