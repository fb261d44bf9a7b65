"""Scorecards: what a published version scored, by what it was asked, and how certain that is.

    <registry>/scorecards/<version>.json

They lie beside the bundles, which never change, because a version may be asked again, by other
data. Figures of two versions compare where both were asked the same, which a hash of it tells.
"""

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from audiofuse.core.settings import Settings
from audiofuse.core.storage.files import Files, open_files, replace_file

log = logging.getLogger(__name__)

SYSTEMS = ("audio only", "metadata only", "hybrid")  # what is ranked
MAP = "mAP@10"
MOST_SCORES = 20  # of a version; the oldest go


class Figure(BaseModel):
    """A mean over queries, with the ends of its 95 % interval."""

    model_config = ConfigDict(frozen=True)
    value: float
    low: float
    high: float


class Score(BaseModel):
    """What came of one set of queries.

    ``asked`` says it in words, ``data`` is the hash of queries and sounds. ``figures`` are by what
    was ranked (``hybrid``; ``audio only`` is without metadata) and by metric; ``at`` is Unix time.
    """

    model_config = ConfigDict(frozen=True)
    asked: str
    data: str
    queries: int
    sounds: int
    figures: Mapping[str, Mapping[str, Figure]]
    at: float = Field(default_factory=time.time)


class Scorecard(BaseModel):
    """All scores of a version, the newest last; of the same questions only the newest."""

    model_config = ConfigDict(frozen=True)
    version: str
    scores: tuple[Score, ...] = ()

    def with_scores(self, new: Sequence[Score]) -> Self:
        """Return the card with further scores."""
        asked = {score.data for score in new}
        kept = [score for score in self.scores if score.data not in asked]
        return self.model_copy(update={"scores": (*kept, *new)[-MOST_SCORES:]})


class Scorecards:
    """The cards of all versions. Every method raises ``Unavailable`` when the registry is away."""

    def __init__(self, files: Files) -> None:
        """Keep them in ``files``."""
        self._files = files

    def of(self, version: str) -> Scorecard:
        """Return a version's card, empty if nothing was asked.

        One that cannot be read, because somebody edited it, is empty as well, with a warning.
        """
        found = self._files.get(_name(version))
        return _parsed(version, found[0]) if found else Scorecard(version=version)

    def add(self, version: str, scores: Sequence[Score]) -> None:
        """Write scores down, however many write at the same time."""

        def with_scores(content: bytes) -> bytes:
            known = _parsed(version, content) if content else Scorecard(version=version)
            return known.with_scores(scores).model_dump_json(indent=2).encode()

        replace_file(self._files, _name(version), with_scores)


def open_scorecards(settings: Settings) -> Scorecards:
    """Open the cards in the settings' registry; nothing is asked yet."""
    return Scorecards(open_files(f"{settings.registry_place}/scorecards", settings))


def compared(cards: Iterable[Scorecard]) -> dict[str, Score]:
    """Return by version the newest scores that compare; versions that have none are left out.

    They answer the same questions. If those that have scores share none, there is nothing.
    """
    known = {card.version: {each.data: each for each in card.scores} for card in cards}
    known = {version: scores for version, scores in known.items() if scores}
    if not known:
        return {}
    first, *others = known.values()
    shared = [data for data in first if all(data in each for each in others)]
    return {version: scores[shared[-1]] for version, scores in known.items()} if shared else {}


def data_hash(facts: Iterable[object]) -> str:
    """Return the hash of what is asked and of what it is asked: the same of the same only."""
    digest = hashlib.sha256()
    for fact in facts:
        digest.update(repr(fact).encode() + b"\n")
    return digest.hexdigest()


def _name(version: str) -> str:
    return f"{version}.json"


def _parsed(version: str, content: bytes) -> Scorecard:
    try:
        return Scorecard.model_validate_json(content)
    except ValidationError as error:
        log.warning("the scorecard of %s is none: %s", version, error.errors()[0]["msg"])
        return Scorecard(version=version)
