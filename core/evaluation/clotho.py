"""ClothoV2 as it is published: tables of captions and keywords beside folders of sounds.

DCASE 2025, task 6, tells of some captions of the evaluation split which of its sounds they describe
besides their own: the file ``metadata_eval.csv`` of that year's baseline, beside the tables.
"""

import ast
from collections.abc import Collection, Mapping
from pathlib import Path

from audiofuse.core.evaluation.clips import CAPTION, TEST, TRAIN, VAL, Clip, Query, ask_for_captions
from audiofuse.core.evaluation.tables import (
    find_table,
    log_missing,
    read_rows,
    sounds_in,
    split_list,
    without_blanks,
    wrong_line,
)
from audiofuse.core.items import Metadata

CLOTHO_SPLITS = {"development": TRAIN, "validation": VAL, "evaluation": TEST}
CLOTHO_FOLDERS = ("", "clotho_csv_files", "clotho_audio_files")  # the release's, aac-datasets'
RELEVANCE = "metadata_eval.csv"
CLOTHO_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read_clotho(folder: Path) -> list[Clip]:
    """Read those splits of ClothoV2 that the folder has.

    Beside ``clotho_captions_development.csv`` lie the sounds in ``development/`` and, if there is
    one, ``clotho_metadata_development.csv``, whose keywords are the metadata; likewise for
    ``validation`` and ``evaluation``. Tables and sounds may also lie in ``clotho_csv_files`` and
    ``clotho_audio_files``, as aac-datasets has them. A title is not given, as the paper uses none.
    The identity is the file's name within its split, as the release repeats names between splits,
    and one clip is right for each query. The origin is the number on Freesound, so that clips of
    other collections that come from there are known.
    """
    return [
        clip
        for name, table in clotho_tables(folder).items()
        for clip in _read_clotho_split(folder, name, table)
    ]


def clotho_tables(folder: Path) -> dict[str, Path]:
    """Return the tables of captions that a folder has, by the release's names of splits.

    None means no ClothoV2.
    """
    found = {
        name: find_table(folder, CLOTHO_FOLDERS, f"clotho_captions_{name}.csv")
        for name in CLOTHO_SPLITS
    }
    return {name: table for name, table in found.items() if table}


def read_relevance(folder: Path) -> list[Query]:
    """Return DCASE 2025's queries for the evaluation split, each with all sounds it describes.

    None where ``metadata_eval.csv`` is not beside the tables. Its columns are ``query``, a caption,
    and ``audio_filenames``, a list of names in brackets. Raises ``ConfigurationError`` with the
    line for anything else, and for a name that is none of the evaluation split.
    """
    table = find_table(folder, CLOTHO_FOLDERS, RELEVANCE)
    captions = clotho_tables(folder).get("evaluation")
    if not (table and captions):
        return []
    known = {row["file_name"] for _, row in read_rows(captions, ("file_name",))}
    return [
        _relevance_query(table, number, row, known)
        for number, row in read_rows(table, ("query", "audio_filenames"))
    ]


def _relevance_query(
    table: Path, number: int, row: Mapping[str, str], known: Collection[str]
) -> Query:
    try:
        names = ast.literal_eval(row["audio_filenames"])
    except (ValueError, SyntaxError) as error:
        raise wrong_line(table, number, f"audio_filenames is no list: {error}") from error
    if not isinstance(names, list) or not names:
        raise wrong_line(table, number, "audio_filenames is no list of names")
    if strange := [name for name in names if name not in known]:
        raise wrong_line(table, number, f"{strange[0]!r} is no sound of the evaluation split")
    first, *others = (_identity(TEST, name) for name in names)
    return Query(row["query"], CAPTION, first, tuple(others))


def _identity(split: str, name: str) -> str:
    return f"clotho/{split}/{name}"


def _read_clotho_split(folder: Path, name: str, table: Path) -> list[Clip]:
    metadata = find_table(folder, CLOTHO_FOLDERS, f"clotho_metadata_{name}.csv")
    described = _read_clotho_metadata(metadata) if metadata else {}
    places = [f"{each}/{name}".lstrip("/") for each in CLOTHO_FOLDERS]
    sounds = {path.name: path for path in sounds_in(folder, *places)}
    clips = []
    rows = list(read_rows(table, ("file_name", *CLOTHO_CAPTIONS)))
    for _, row in rows:
        if path := sounds.get(row["file_name"]):
            facts = described.get(path.name, {})
            clips.append(_clotho_clip(path, CLOTHO_SPLITS[name], row, facts))
    log_missing(table, len(rows), len(clips))
    return clips


def _read_clotho_metadata(table: Path) -> dict[str, dict[str, str]]:
    columns = ("file_name", "keywords", "sound_id", "license")
    return {row["file_name"]: row for _, row in read_rows(table, columns, "latin-1")}


def _clotho_clip(path: Path, split: str, row: Mapping[str, str], facts: Mapping[str, str]) -> Clip:
    sound_id = facts.get("sound_id", "")
    return ask_for_captions(
        Clip(
            path=path,
            identity=_identity(split, path.name),
            # It is "Not found" for some.
            origin=f"freesound-{sound_id}" if sound_id.isdecimal() else "",
            split=split,
            metadata=Metadata(keywords=split_list(facts.get("keywords", ""), ";")),
            captions=without_blanks(row[column] for column in CLOTHO_CAPTIONS),
            licence=facts.get("license", ""),
            collection="clotho",
        )
    )
