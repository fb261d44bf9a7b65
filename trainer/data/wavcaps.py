"""WavCaps as it is shared: one artificial caption a sound, written by a language model.

A folder with ``json_files/SOURCE/*.json``, each with the rows of its ``data``; the sounds lie in
``Audio/SOURCE/`` (as aac-datasets has them), ``Zip_files/SOURCE/`` or ``SOURCE/``, by their ``id``.
arXiv 2303.17395; sources are AudioSet_SL, BBC_Sound_Effects, FreeSound and SoundBible.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import TRAIN, Clip
from audiofuse.core.evaluation.tables import log_missing, sounds_in, without_blanks
from audiofuse.core.items import Metadata

TABLES = "json_files"
BLACKLIST = "blacklist"  # a folder of ids, no source


class _Row(BaseModel):
    """What is read of a row; the sources have different fields."""

    id: Annotated[str, BeforeValidator(str)]
    caption: str
    title: str | None = None
    file_name: str | None = None
    description: str | None = None
    tags: list[str] = Field(default_factory=list)


class _Table(BaseModel):
    data: list[_Row]


def wavcaps_tables(folder: Path) -> list[Path]:
    """Return the tables that a folder has: none means no WavCaps."""
    found = sorted((folder / TABLES).glob("*/*.json"))
    return [path for path in found if path.parent.name != BLACKLIST]


def read_wavcaps(folder: Path) -> list[Clip]:
    """Read those sources of WavCaps that the folder has: all are to learn from.

    The captions are artificial ones; title, description and tags are the metadata. What comes from
    Freesound or YouTube is named as ClothoV2 and AudioCaps name it, so that what they have as well
    is known. Raises ``ConfigurationError`` with the file for a table of another form.
    """
    return [clip for table in wavcaps_tables(folder) for clip in _read_source(folder, table)]


def _read_source(folder: Path, table: Path) -> Iterator[Clip]:
    source = table.parent.name
    places = [f"{place}{source}" for place in ("Audio/", "Zip_files/", "")]
    sounds = {path.stem: path for path in sounds_in(folder, *places)}
    try:
        rows = _Table.model_validate(json.loads(table.read_bytes())).data
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot read {table}: {_told(error)}") from error
    named = [(row, Path(row.id).stem) for row in rows]  # AudioSet's ids have a suffix
    found = [(row, sounds[name]) for row, name in named if name in sounds]
    log_missing(table, len(rows), len(found))
    for row, path in found:
        yield Clip(
            path=path,
            identity=_identity(source, path.stem),
            split=TRAIN,
            metadata=Metadata(
                title=row.title or Path(row.file_name or "").stem,
                description=row.description or "",
                keywords=without_blanks(row.tags),
            ),
            collection=f"wavcaps-{source}",
            artificial=without_blanks([row.caption]),
        )


def _identity(source: str, name: str) -> str:
    match source:
        case "FreeSound":
            return f"freesound-{name}"
        case "AudioSet_SL":  # YouTube ids with a Y before them
            return f"youtube-{name[1:]}"
        case _:
            return f"wavcaps-{source}-{name}"


def _told(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
