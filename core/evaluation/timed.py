"""Recordings with queries whose answers have a place in time: what finding moments is judged by.

A manifest (JSONL) has rows of queries, with ``text`` and ``relevant``, ``[audio, start_s, end_s]``
of each place that is meant, paths beside it; and it may have rows of recordings, sidecars with the
field ``audio`` as in other manifests, whose words are then their metadata. Queries of one
``identity`` stand and fall together; by default it is the first recording that is meant.
CASTELLA's files (``castella``) are read as they are released.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import pydantic_core
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from audiofuse.core.errors import ConfigurationError, Rejected
from audiofuse.core.evaluation.castella import CASTELLA_SUFFIX, read_castella
from audiofuse.core.evaluation.clips import Clip, clip_of, parse_row
from audiofuse.core.items import Metadata


class Span(NamedTuple):
    """A part of a recording, which is named as in its manifest."""

    audio: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class TimedQuery:
    """A sentence and what it means; queries of one ``identity`` are no independent evidence."""

    text: str
    identity: str
    relevant: tuple[Span, ...]


@dataclass(frozen=True)
class Timed:
    """Recordings by name, and the queries for moments in them."""

    recordings: dict[str, Clip]
    queries: list[TimedQuery]


def _in_order(span: Span) -> Span:
    if not 0 <= span.start_s <= span.end_s:
        msg = f"{span.start_s:g} to {span.end_s:g} s is no part of a recording"
        raise ValueError(msg)
    return span


class _Asked(BaseModel):
    text: str = Field(min_length=1)
    identity: str = ""
    relevant: list[Annotated[Span, AfterValidator(_in_order)]] = Field(min_length=1)


def read_timed(path: Path, audio: Path | None = None) -> Timed:
    """Read a manifest, or CASTELLA's ``json/LANGUAGE/SPLIT.json``; errors name file and line.

    ``audio`` is the folder that names of recordings start from; by default it is the file's own.
    """
    folder = audio or path.parent
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"cannot read the manifest {path}: {error.strerror}") from error
    if path.suffix == CASTELLA_SUFFIX:
        rows = [
            (name, caption, [Span(name, *times) for times in moments])
            for name, caption, moments in read_castella(content, path)
        ]
        asked = [TimedQuery(text, name, tuple(spans)) for name, text, spans in rows]
        return Timed(_recordings(asked, folder), asked)
    return _read_manifest(content, path, folder)


def _read_manifest(content: bytes, path: Path, folder: Path) -> Timed:
    given: dict[str, Clip] = {}
    asked: list[TimedQuery] = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            row = pydantic_core.from_json(line)
            if isinstance(row, dict) and "relevant" in row:
                fields = _Asked.model_validate(row)
                identity = fields.identity or fields.relevant[0].audio
                asked.append(TimedQuery(fields.text, identity, tuple(fields.relevant)))
            else:
                given[row["audio"] if isinstance(row, dict) else ""] = parse_row(line, folder)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            detail = f'field "{where}": {first["msg"]}'
            raise ConfigurationError(f"{path}, line {number}: {detail}") from error
        except (ValueError, KeyError, TypeError, Rejected) as error:
            detail = error.detail if isinstance(error, Rejected) else f"no row: {error}"
            raise ConfigurationError(f"{path}, line {number}: {detail}") from error
    return Timed(_recordings(asked, folder) | given, asked)


def _recordings(asked: list[TimedQuery], folder: Path) -> dict[str, Clip]:
    """Return what queries name, without metadata."""
    names = dict.fromkeys(span.audio for query in asked for span in query.relevant)
    return {name: clip_of(folder / name, name, Metadata()) for name in names}
