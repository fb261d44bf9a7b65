"""Fixtures: folders as ClothoV2 and AudioCaps are published, with two or three sounds."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SOUNDS = Path(__file__).parents[2] / "examples" / "sounds"
OWL = SOUNDS / "animals/owl.wav"
CLOTHO_HEAD = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
CLOTHO_METADATA_HEAD = (
    "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
)
SEGMENTS = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=3\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
    'r1nicOVtvkQ, 130.000, 140.000, "/m/02jz0l,/m/09x0r"\n'
    'not_in_it_x, 30.000, 40.000, "/m/unheard_of"\n'
)
AUDIOCAPS_HEAD = "audiocap_id,youtube_id,start_time,caption\n"


def put_sound(sound: Path, *targets: Path) -> None:
    """Copy a sound to several places, folders included."""
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sound, target)


@pytest.fixture
def clotho(tmp_path: Path) -> Path:
    """Return a folder like ClothoV2 as it is published, with two clips, one of them described."""
    folder = tmp_path / "clotho"
    put_sound(OWL, folder / "development/ an owl.wav", folder / "evaluation/owl 2.wav")
    (folder / "clotho_captions_development.csv").write_text(
        CLOTHO_HEAD + ' an owl.wav,An owl hoots.,"A bird, at night.", ,Hooting.,Owl.\n'
    )
    (folder / "clotho_metadata_development.csv").write_bytes(
        (
            CLOTHO_METADATA_HEAD
            + ' an owl.wav,nuit;forêt; owl,4711,https://x,"[1, 2]",someone,CC0\n'
        ).encode("latin-1")
    )
    (folder / "clotho_captions_evaluation.csv").write_text(CLOTHO_HEAD + "owl 2.wav,a,b,c,d,e\n")
    return folder


@pytest.fixture
def audiocaps(tmp_path: Path) -> Path:
    """Return a folder with tables of AudioCaps and AudioSet, without any sound."""
    folder = tmp_path / "audiocaps"
    folder.mkdir()
    (folder / "train.csv").write_text(
        AUDIOCAPS_HEAD + '91139,r1nicOVtvkQ,130,"A woman talks, water pours"\n'
    )
    (folder / "audiocaps_val.csv").write_text(
        AUDIOCAPS_HEAD
        + "97151,vfY_TJq7n_U,130,Ducks quack\n"
        + "97152,-gone-gone-,10,Nothing is left\n"
        + "97153,vfY_TJq7n_U,130,Ducks and water\n"
    )
    return folder


@pytest.fixture(scope="session")
def put() -> Callable[..., None]:
    """Return what copies a sound to several places, folders included."""
    return put_sound
