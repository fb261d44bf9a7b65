"""ClothoV2 as it is published: tables of captions and keywords beside folders of sounds."""

from collections.abc import Mapping
from pathlib import Path

from audiofuse.core.evaluation.clips import Clip, ask_for_captions
from audiofuse.core.items import Metadata
from audiofuse.trainer.data.splits import TEST, TRAIN, VAL
from audiofuse.trainer.data.tables import (
    log_missing,
    read_rows,
    sounds_in,
    split_list,
    without_blanks,
)

CLOTHO_SPLITS = {"development": TRAIN, "validation": VAL, "evaluation": TEST}
CLOTHO_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read_clotho(folder: Path) -> list[Clip]:
    """Read those splits of ClothoV2 that the folder has.

    Beside ``clotho_captions_development.csv`` lie the sounds in ``development/`` and, if there is
    one, ``clotho_metadata_development.csv``, whose keywords are the metadata; likewise for
    ``validation`` and ``evaluation``. A title is not given, as the paper uses none. The identity is
    the file's name within its split, as the release repeats names between splits, and one clip is
    right for each query. The origin is the number on Freesound, so that clips of other collections
    that come from there are known.
    """
    tables = clotho_tables(folder)
    return [clip for name in tables for clip in _read_clotho_split(folder, name)]


def clotho_tables(folder: Path) -> list[str]:
    """Return which of the release's splits a folder has tables of: none means no ClothoV2."""
    return [name for name in CLOTHO_SPLITS if (folder / f"clotho_captions_{name}.csv").is_file()]


def _read_clotho_split(folder: Path, name: str) -> list[Clip]:
    described = _read_clotho_metadata(folder / f"clotho_metadata_{name}.csv")
    sounds = {path.name: path for path in sounds_in(folder / name)}
    table = folder / f"clotho_captions_{name}.csv"
    clips = []
    rows = list(read_rows(table, ("file_name", *CLOTHO_CAPTIONS)))
    for _, row in rows:
        if path := sounds.get(row["file_name"]):
            facts = described.get(path.name, {})
            clips.append(_clotho_clip(path, CLOTHO_SPLITS[name], row, facts))
    log_missing(table, len(rows), len(clips))
    return clips


def _read_clotho_metadata(table: Path) -> dict[str, dict[str, str]]:
    if not table.is_file():
        return {}
    columns = ("file_name", "keywords", "sound_id", "license")
    return {row["file_name"]: row for _, row in read_rows(table, columns, "latin-1")}


def _clotho_clip(path: Path, split: str, row: Mapping[str, str], facts: Mapping[str, str]) -> Clip:
    sound_id = facts.get("sound_id", "")
    return ask_for_captions(
        Clip(
            path=path,
            identity=f"clotho/{split}/{path.name}",
            # It is "Not found" for some.
            origin=f"freesound-{sound_id}" if sound_id.isdecimal() else "",
            split=split,
            metadata=Metadata(keywords=split_list(facts.get("keywords", ""), ";")),
            captions=without_blanks(row[column] for column in CLOTHO_CAPTIONS),
            licence=facts.get("license", ""),
            collection="clotho",
        )
    )
