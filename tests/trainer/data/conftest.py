"""Folders as the data sets are published, and a bucket with its sidecars."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import s3_client

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL, CROW = SOUNDS / "animals/owl.wav", SOUNDS / "animals/crow.flac"
CLOTHO_HEAD = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
CLOTHO_METADATA_HEAD = (
    "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license\n"
)
AUDIOCAPS_HEAD = "audiocap_id,youtube_id,start_time,caption\n"
SIDECARS: dict[str, dict[str, Any]] = {
    "night/owl.wav.json": {
        "title": "Owl",
        "captions": ["an owl hoots", "a bird at night"],
        "identity": "the owl",
        "split": "val",
        "queries": [{"text": "hooting"}],
        "recorder": "mine",
    },
    "crow.json": {"keywords": "crow; caw", "captions": "a crow calls"},
}


def _put(sound: Path, *targets: Path) -> None:
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sound, target)


@pytest.fixture
def clotho(tmp_path: Path) -> Path:
    """Return a folder like ClothoV2 as it is published, with two clips, one of them described."""
    folder = tmp_path / "clotho"
    _put(OWL, folder / "development/ an owl.wav", folder / "evaluation/owl 2.wav")
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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a bucket folder: two sounds with sidecars, one without, and what is no sound."""
    root = tmp_path / "birds"
    _put(OWL, root / "night/owl.wav", root / "bare.wav")
    _put(CROW, root / "crow.flac")
    for key, fields in SIDECARS.items():
        (root / key).write_text(json.dumps(fields))
    (root / "notes.txt").write_text("no sound")
    return root


@pytest.fixture
def s3(aws_settings: Settings, folder: Path) -> Settings:
    """Return settings of an S3 bucket that holds what the folder holds."""
    client = s3_client(aws_settings)
    bucket = aws_settings.bucket.removeprefix("s3://")
    for path in folder.rglob("*.*"):
        key = path.relative_to(folder).as_posix()
        client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    return aws_settings


@pytest.fixture(scope="session")
def put() -> Callable[..., None]:
    """Return what copies a sound to several places, folders included."""
    return _put
