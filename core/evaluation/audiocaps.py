"""AudioCaps as it is shared: captions by YouTube clip, sounds named in any of the usual ways."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import TEST, TRAIN, VAL, Clip, ask_for_captions
from audiofuse.core.evaluation.tables import (
    find_table,
    log_missing,
    read_lines,
    read_rows,
    sounds_in,
    split_list,
    without_blanks,
    wrong_line,
)
from audiofuse.core.items import Metadata

AUDIOCAPS_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
# A YouTube id has 11 characters; the end of a segment is left out, as the tables do not tell it.
YOUTUBE_SEGMENT = re.compile(r"(.{11}_\d+)_\d+")
# The root of a folder, that of the authors' repository, those of aac-datasets.
TABLE_FOLDERS = ("", "dataset", "csv_files_v1", "csv_files_v2")
AUDIO_FOLDER = "audio_32000Hz"  # of aac-datasets
AUDIOSET_COLUMNS = 4  # YTID, start_seconds, end_seconds, positive_labels


def read_audiocaps(folder: Path) -> list[Clip]:
    """Read those splits of AudioCaps that the folder has.

    The tables are ``train.csv``, ``val.csv``, ``test.csv`` or ``audiocaps_train.csv`` and so on;
    rows of one YouTube clip are its captions. The sounds lie in ``train/``, ``val/``, ``test/`` or
    all in ``audio/``, named in one of the ways of ``_audiocaps_names``. Tables may also lie in
    ``dataset/``, as in the authors' repository, and tables and sounds as aac-datasets has them.
    AudioSet's labels are the metadata, if its ``*_segments.csv`` and ``*class_labels_indices.csv``
    are in the folder too.
    """
    tables = audiocaps_tables(folder)
    found = [
        (split, path, rows)
        for split, table in tables.items()
        for path, rows in _read_audiocaps_split(folder, split, table)
    ]
    labels = _read_audioset_labels(folder, {rows[0]["youtube_id"] for *_, rows in found})
    return [
        ask_for_captions(
            Clip(
                path=path,
                identity=f"youtube-{rows[0]['youtube_id']}",
                split=split,
                metadata=Metadata(labels=labels.get(rows[0]["youtube_id"], ())),
                captions=without_blanks(row["caption"] for row in rows),
                collection="audiocaps",
            )
        )
        for split, path, rows in found
    ]


def audiocaps_tables(folder: Path) -> dict[str, Path]:
    """Return the tables of captions that a folder has, by split: none means no AudioCaps."""
    found = {
        split: find_table(folder, TABLE_FOLDERS, f"{split}.csv", f"audiocaps_{split}.csv")
        for split in (TRAIN, VAL, TEST)
    }
    return {split: table for split, table in found.items() if table}


def _read_audiocaps_split(
    folder: Path, split: str, table: Path
) -> list[tuple[Path, list[dict[str, str]]]]:
    """Return each clip of a split that has a sound, with its rows in the order of the table."""
    sounds: dict[str, Path] = {}
    for path in sounds_in(folder, split, "audio", f"audio/{split}", f"{AUDIO_FOLDER}/{split}"):
        segment = YOUTUBE_SEGMENT.fullmatch(path.stem)
        sounds.setdefault(segment[1] if segment else path.stem, path)
    clips: dict[tuple[str, str], list[dict[str, str]]] = {}
    for number, row in read_rows(table, AUDIOCAPS_COLUMNS):
        if not row["start_time"].isdecimal():
            raise wrong_line(
                table, number, f"start_time is no number of seconds: {row['start_time']}"
            )
        clips.setdefault((row["youtube_id"], row["start_time"]), []).append(row)
    named = [(_audiocaps_names(rows), rows) for rows in clips.values()]
    found = [
        (sounds[present[0]], rows)
        for names, rows in named
        if (present := [name for name in names if name in sounds])
    ]
    log_missing(table, len(clips), len(found))
    return found


def _audiocaps_names(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names without suffix that those who share AudioCaps give to a clip's sound.

    They go by YouTube's id, alone or with the start in seconds, as in AudioSet's archives with a Y
    before it or with start and end in milliseconds, or by the number of one of the captions.
    """
    youtube_id, start = rows[0]["youtube_id"], int(rows[0]["start_time"])
    return [
        youtube_id,
        f"Y{youtube_id}",
        f"{youtube_id}_{start}",
        f"{youtube_id}_{start * 1000}",
        *(row["audiocap_id"] for row in rows),
    ]


def _read_audioset_labels(folder: Path, youtube_ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the class names of those clips that the folder's AudioSet tables label."""
    tables = sorted(folder.glob("*_segments.csv"))
    if not tables:
        return {}
    names = _read_class_names(folder)
    labels = {}
    for table in tables:
        for number, row in read_lines(table, skip_blanks=True):
            if row[0].startswith("#"):
                continue  # the heads of these tables are comments
            if len(row) != AUDIOSET_COLUMNS:
                raise wrong_line(table, number, f"{len(row)} fields instead of {AUDIOSET_COLUMNS}")
            if row[0] in youtube_ids:
                labels[row[0]] = tuple(
                    _name(names, mid, table, number) for mid in split_list(row[3])
                )
    return labels


def _read_class_names(folder: Path) -> dict[str, str]:
    """Return AudioSet's class names by machine id, as ``/m/09x0r``."""
    tables = sorted(folder.glob("*class_labels_indices.csv"))
    if not tables:
        raise ConfigurationError(
            f"{folder} has labels of AudioSet's segments, but no class_labels_indices.csv to name "
            "them"
        )
    return {
        row["mid"]: row["display_name"] for _, row in read_rows(tables[0], ("mid", "display_name"))
    }


def _name(names: Mapping[str, str], mid: str, table: Path, number: int) -> str:
    if mid not in names:
        raise wrong_line(table, number, f"no class has the machine id {mid}")
    return names[mid]
