"""Tables: what is wrong in one is named, what the disk lacks is counted."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation import tables
from audiofuse.core.evaluation.audiocaps import read_audiocaps
from audiofuse.core.evaluation.clotho import read_clotho

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL, CROW = SOUNDS / "animals/owl.wav", SOUNDS / "animals/crow.flac"
AUDIOCAPS_HEAD = "audiocap_id,youtube_id,start_time,caption\n"


def test_missing_sounds_are_left_out_and_counted(
    put: Callable[..., None], clotho: Path, audiocaps: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Clips without a sound file are no clips, and the log tells how many of each table."""
    (clotho / "evaluation/owl 2.wav").unlink()
    put(OWL, audiocaps / "val/vfY_TJq7n_U.wav")
    with caplog.at_level(logging.WARNING):
        assert len(read_clotho(clotho)) == 1
        assert len(read_audiocaps(audiocaps)) == 1
    told = [record.getMessage().rpartition("/")[2] for record in caplog.records]
    assert told == [
        "clotho_captions_evaluation.csv: 1 of 1 clips have no sound file",
        "train.csv: 1 of 1 clips have no sound file",
        "audiocaps_val.csv: 1 of 2 clips have no sound file",
    ]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"id,caption\n", "train.csv, line 1: .*audiocap_id, youtube_id, start_time"),
        (b"", "train.csv is empty"),
        (AUDIOCAPS_HEAD.encode() + b"1,abc,3\n", "train.csv, line 2: 3 fields instead of 4"),
        (AUDIOCAPS_HEAD.encode() + b"1,abc,3,x\n\n2,b,3,x,y\n", "line 4: 5 fields instead of 4"),
        (AUDIOCAPS_HEAD.encode() + b"1,abc,soon,x\n", "line 2: .*start_time.*soon"),
        (AUDIOCAPS_HEAD.encode() + b"1,abc,3,\xff\n", "line 2: not utf-8"),
        (AUDIOCAPS_HEAD.encode() + b'1,abc,3,"x\n', "train.csv, line 2: "),
    ],
)
def test_wrong_tables_are_named(audiocaps: Path, content: bytes, named: str) -> None:
    """A table that cannot be read is an error that says which line is wrong."""
    (audiocaps / "train.csv").write_bytes(content)
    with pytest.raises(ConfigurationError, match=named):
        read_audiocaps(audiocaps)


def test_a_byte_order_mark_is_no_part_of_a_column(
    put: Callable[..., None], audiocaps: Path
) -> None:
    """Tables that a spreadsheet program wrote are read as well."""
    put(OWL, audiocaps / "train/r1nicOVtvkQ.wav")
    table = audiocaps / "train.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert len(read_audiocaps(audiocaps)) == 1


def test_a_table_that_is_a_folder_cannot_be_read(audiocaps: Path) -> None:
    """A table that cannot be opened is named."""
    with pytest.raises(ConfigurationError, match="audiocaps"):
        list(tables.read_rows(audiocaps, ("caption",)))
