"""Any source is read by what it is."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from releases import SEGMENTS

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.audiocaps import read_audiocaps
from audiofuse.core.evaluation.clotho import read_clotho
from audiofuse.core.settings import Settings
from audiofuse.trainer.data.datasets import read_dataset

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL, CROW = SOUNDS / "animals/owl.wav", SOUNDS / "animals/crow.flac"


def test_the_published_tables_are_read(
    put: Callable[..., None], shared: Path, tmp_path: Path
) -> None:
    """The real tables of ClothoV2, AudioCaps and AudioSet parse to the end."""
    for table in (shared / "data" / "text").iterdir():
        (tmp_path / table.name).symlink_to(table)
    put(OWL, tmp_path / "development/violin1.wav", tmp_path / "train/r1nicOVtvkQ.wav")
    (tmp_path / "balanced_train_segments.csv").write_text(SEGMENTS)
    (violin,) = read_clotho(tmp_path)
    assert violin.origin == "freesound-211388"
    assert violin.metadata.keywords == ("background", "background-sound", "atmos", "anxious")
    assert len(violin.captions) == 5
    (water,) = read_audiocaps(tmp_path)
    assert water.captions == ("A woman talks nearby as water pours",)
    assert water.metadata.labels == ("Water tap, faucet", "Speech")


def test_a_source_is_read_by_what_it_is(
    clotho: Path, audiocaps: Path, s3: Settings, folder: Path, tmp_path: Path
) -> None:
    """Manifest, ClothoV2, AudioCaps, folder and S3 bucket are told apart by the path alone."""
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text('{"audio": "owl.wav", "set": "mine"}\n')
    (audiocaps / "val").mkdir()
    shutil.copy(OWL, audiocaps / "val/vfY_TJq7n_U.wav")
    sources = [str(manifest), str(clotho), str(audiocaps), str(folder), s3.bucket]
    read = [read_dataset(source, s3, tmp_path / "downloads").clips for source in sources]
    assert [(clips[0].collection, len(clips)) for clips in read] == [
        ("mine", 1),
        ("clotho", 2),
        ("audiocaps", 1),
        ("birds", 3),
        (s3.bucket.removeprefix("s3://"), 3),
    ]


def test_a_source_without_clips_is_refused(audiocaps: Path, tmp_path: Path) -> None:
    """Where nothing can be trained on, that is said at once."""
    for source in (audiocaps, tmp_path / "nowhere"):
        with pytest.raises(ConfigurationError, match=source.name):
            read_dataset(str(source), Settings(), tmp_path / "downloads")
