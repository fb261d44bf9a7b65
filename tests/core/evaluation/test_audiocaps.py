"""AudioCaps as it is shared, with AudioSet's labels."""

from collections.abc import Callable
from pathlib import Path

import pytest
from releases import SEGMENTS

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.audiocaps import read_audiocaps
from audiofuse.core.items import Metadata

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL, CROW = SOUNDS / "animals/owl.wav", SOUNDS / "animals/crow.flac"
CLASSES = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/02jz0l,"Water tap, faucet"\n'


def test_audiocaps_rows_of_one_clip_are_its_captions(
    put: Callable[..., None], audiocaps: Path
) -> None:
    """Several rows of one YouTube clip make one clip with as many captions, in their order."""
    put(OWL, audiocaps / "val/vfY_TJq7n_U.wav")
    (clip,) = read_audiocaps(audiocaps)
    assert (clip.split, clip.identity) == ("val", "youtube-vfY_TJq7n_U")
    assert clip.captions == ("Ducks quack", "Ducks and water")
    assert [query.text for query in clip.queries] == list(clip.captions)
    assert (clip.collection, clip.metadata) == ("audiocaps", Metadata())


@pytest.mark.parametrize(
    "name",
    [
        "val/vfY_TJq7n_U.wav",
        "audio/vfY_TJq7n_U.flac",
        "audio/YvfY_TJq7n_U.mp3",
        "val/97151.wav",
        "val/97153.wav",
        "val/vfY_TJq7n_U_130.wav",
        "val/vfY_TJq7n_U_130000_140000.flac",
    ],
)
def test_audiocaps_sounds_go_by_several_names(
    put: Callable[..., None], audiocaps: Path, name: str
) -> None:
    """A clip's sound is found under each name that is in use, and is no other clip's."""
    put(OWL, audiocaps / name, audiocaps / "val/vfY_TJq7n_U_131.wav", audiocaps / "val/other.wav")
    assert [clip.path for clip in read_audiocaps(audiocaps)] == [audiocaps / name]


def test_audioset_labels_are_the_metadata(put: Callable[..., None], audiocaps: Path) -> None:
    """Where AudioSet's tables are in the folder, its class names are the clips' labels."""
    put(OWL, audiocaps / "train/r1nicOVtvkQ.wav", audiocaps / "val/vfY_TJq7n_U.wav")
    (audiocaps / "unbalanced_train_segments.csv").write_text(SEGMENTS)
    (audiocaps / "audioset_class_labels_indices.csv").write_text(CLASSES)
    labels = [clip.metadata.labels for clip in read_audiocaps(audiocaps)]
    assert labels == [("Water tap, faucet", "Speech"), ()]


@pytest.mark.parametrize(
    ("classes", "segments", "named"),
    [
        ("", SEGMENTS, "class_labels_indices"),
        ("index,display_name\n", SEGMENTS, "indices.csv, line 1: .*mid"),
        (CLASSES, SEGMENTS.replace("02jz0l", "nothing"), "segments.csv, line 4: .*/m/nothing"),
        (CLASSES, SEGMENTS.replace(" 140.000,", ""), "segments.csv, line 4: 3 fields"),
    ],
)
def test_wrong_label_tables_are_named(
    put: Callable[..., None], audiocaps: Path, classes: str, segments: str, named: str
) -> None:
    """Labels that cannot be named are an error that says where."""
    put(OWL, audiocaps / "train/r1nicOVtvkQ.wav")
    (audiocaps / "train_segments.csv").write_text(segments)
    if classes:
        (audiocaps / "class_labels_indices.csv").write_text(classes)
    with pytest.raises(ConfigurationError, match=named):
        read_audiocaps(audiocaps)


@pytest.mark.parametrize("tables", ["dataset", "csv_files_v1"])
def test_audiocaps_of_a_loader_is_read_too(
    put: Callable[..., None], audiocaps: Path, tables: str
) -> None:
    """The authors' repository and aac-datasets keep tables and sounds in other folders."""
    (audiocaps / tables).mkdir()
    (audiocaps / "audiocaps_val.csv").rename(audiocaps / tables / "val.csv")
    (audiocaps / "train.csv").unlink()
    sound = audiocaps / "audio_32000Hz/val/vfY_TJq7n_U_130.flac"
    put(OWL, sound)
    assert [clip.path for clip in read_audiocaps(audiocaps)] == [sound]
