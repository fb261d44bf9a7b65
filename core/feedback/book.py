"""The book of verdicts: a file of JSON lines for each day, beside the encoders in the registry.

    <registry>/feedback-<index name>/2026-11-30.jsonl

Lines are only ever added, until somebody has them erased. Whoever writes a file replaces the one
that he has read, and reads again if another was faster: so of writers at the same time none
overwrites the other, and a file is whole at any moment.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime

from pydantic import ValidationError

from audiofuse.core.errors import AudiofuseError
from audiofuse.core.feedback.verdicts import Verdict
from audiofuse.core.settings import Settings
from audiofuse.core.storage.files import Files, open_files, replace_file

log = logging.getLogger(__name__)

# Of one day's verdicts, some 300 bytes each. More are written ever more slowly, as each of them
# replaces the day's file; and no listener says so much.
MAX_DAY_BYTES = 8 * 1024**2
SUFFIX = ".jsonl"


class BookFull(AudiofuseError):  # noqa: N818 - as the others
    """So much was said today that no more is kept."""


def open_book(settings: Settings) -> "Book":
    """Open the book of the settings' index; nothing is asked yet."""
    place = f"{settings.registry_place}/feedback-{settings.index_name}"
    return Book(open_files(place, settings))


class Book:
    """All verdicts of one index. Every method raises ``Unavailable`` when the registry is away."""

    def __init__(self, files: Files, max_day_bytes: int = MAX_DAY_BYTES) -> None:
        """Keep them in ``files``, of each day at most ``max_day_bytes``."""
        self._files = files
        self._max_day_bytes = max_day_bytes

    def add(self, verdicts: Sequence[Verdict]) -> None:
        """Write verdicts down; when this returns they are kept. ``BookFull`` if no more are."""
        by_day: dict[date, list[Verdict]] = {}
        for verdict in verdicts:
            by_day.setdefault(_day(verdict), []).append(verdict)
        for day, those in by_day.items():
            lines = "".join(verdict.model_dump_json() + "\n" for verdict in those).encode()

            def with_lines(content: bytes, lines: bytes = lines, day: date = day) -> bytes:
                if len(content) + len(lines) > self._max_day_bytes:
                    raise BookFull(f"more was said on {day} than is kept of a day")
                return content + lines

            replace_file(self._files, f"{day}{SUFFIX}", with_lines)

    def read(self) -> Iterator[Verdict]:
        """Yield all verdicts, day by day; a line that cannot be read is left out, with a warning.

        Somebody may have edited the file by hand.
        """
        for name in self._names():
            found = self._files.get(name)
            for number, line in enumerate(found[0].splitlines() if found else [], 1):
                verdict = _parsed(line, f"{name}, line {number}")
                if verdict:
                    yield verdict

    def erase(self, chosen: Callable[[Verdict], bool]) -> int:
        """Take out the verdicts that are chosen, for good; return how many they were.

        Lines that cannot be read stay: nobody can tell whose they are.
        """
        erased = 0
        for name in self._names():
            before = after = 0

            def without(content: bytes, name: str = name) -> bytes:
                nonlocal before, after
                lines = content.splitlines(keepends=True)
                kept = [line for line in lines if not _is_chosen(line, name, chosen)]
                before, after = len(lines), len(kept)
                return b"".join(kept)

            replace_file(self._files, name, without)
            erased += before - after
        return erased

    def _names(self) -> Iterable[str]:
        return sorted(name for name, _ in self._files.list() if name.endswith(SUFFIX))


def _day(verdict: Verdict) -> date:
    return datetime.fromtimestamp(verdict.at, UTC).date()


def _parsed(line: bytes, where: str) -> Verdict | None:
    try:
        return Verdict.model_validate_json(line)
    except ValidationError as error:
        log.warning("%s is no verdict, and left out: %s", where, error.errors()[0]["msg"])
        return None


def _is_chosen(line: bytes, name: str, chosen: Callable[[Verdict], bool]) -> bool:
    verdict = _parsed(line, name)
    return verdict is not None and chosen(verdict)
