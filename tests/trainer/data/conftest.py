"""A bucket with its sidecars, and the folders of ``releases``."""

import json
from pathlib import Path
from typing import Any

import pytest
from releases import audiocaps, clotho, put, put_sound

from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL, CROW = SOUNDS / "animals/owl.wav", SOUNDS / "animals/crow.flac"
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

__all__ = ["audiocaps", "clotho", "put"]  # fixtures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a bucket folder: two sounds with sidecars, one without, and what is no sound."""
    root = tmp_path / "birds"
    put_sound(OWL, root / "night/owl.wav", root / "bare.wav")
    put_sound(CROW, root / "crow.flac")
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
