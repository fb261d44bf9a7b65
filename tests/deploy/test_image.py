"""Docker alone: the image is clean, ./audiofuse says what it lacks, upload.py puts a folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripts import load_script

from audiofuse.core.errors import Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import s3_client

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
SCRIPT = DEPLOY / "upload.py"
# What `docker version`, `docker compose version` and `docker buildx version` say.
DOCKER = """#!/bin/sh
case "$1 $2" in
"version --format") echo {engine} ;;
"compose version") echo {compose} ;;
"buildx version") ;;
*) echo "called: $*" ;;
esac
"""


@pytest.fixture(scope="module")
def script() -> Any:
    """Return the script as a module."""
    return load_script("upload")


def test_what_is_whole_and_not_hidden_is_uploaded(
    script: Any, aws_settings: Settings, tmp_path: Path
) -> None:
    """Keys are paths in the folder; what is hidden or still being written stays out."""
    for name in ("a/owl ü.wav", "rain.wav", ".git/config", "a/.DS_Store", "b.wav.part"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    settings = aws_settings.model_copy(update={"bucket": "s3://uploads"})
    s3 = s3_client(settings)
    with pytest.raises(Unavailable, match=r"uploading a/owl ü.wav to s3://uploads"):
        script.upload(tmp_path, settings)
    s3.create_bucket(Bucket="uploads")
    script.upload(tmp_path, settings)
    listed = s3.list_objects_v2(Bucket="uploads")["Contents"]
    assert {each["Key"] for each in listed} == {"a/owl ü.wav", "rain.wav"}
    assert s3.get_object(Bucket="uploads", Key="rain.wav")["Body"].read() == b"rain.wav"


def _wrapper(folder: Path, *arguments: str, engine: str, compose: str) -> tuple[int, str]:
    """Run ./audiofuse in a checkout of its own with a docker of these versions."""
    (folder / "deploy").mkdir(exist_ok=True)
    shutil.copy(ROOT / "audiofuse", folder)
    shutil.copy(ROOT / "deploy" / "compose-env.sh", folder / "deploy")
    (folder / "docker").write_text(DOCKER.format(engine=engine, compose=compose))
    (folder / "docker").chmod(0o755)
    done = subprocess.run(
        [folder / "audiofuse", *arguments], check=False, capture_output=True, text=True,
        env=os.environ | {"PATH": f"{folder}:/usr/bin:/bin"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("compose", "engine", "code", "said"),
    [
        ("1.29.2", "28.2.2", 1, "Compose is 1.29.2 and has to be 2.24 or newer"),
        ("v2.9.0", "28.2.2", 1, "Compose is v2.9.0 and has to be 2.24 or newer"),
        ("2.40.3-3", "20.10.24+dfsg1", 0, "before 25.0.5 containers may look up names outside"),
        ("2.24.0", "25.0.5", 0, "called: compose up --build --wait"),
    ],
)
def test_versions_are_checked_with_a_sentence(
    tmp_path: Path, compose: str, engine: str, code: int, said: str
) -> None:
    """What is too old for docker-compose.yml is named before anything is made."""
    ended, told = _wrapper(tmp_path, "up", engine=engine, compose=compose)
    assert ended == code, told
    assert said in told
    assert (tmp_path / ".env").exists() == (code == 0)


def test_a_command_is_one_of_the_operator(tmp_path: Path) -> None:
    """Without passwords it says what to do first; with them each word reaches the container."""
    versions = {"engine": "28.2.2", "compose": "2.40.3"}
    assert "run ./audiofuse up first" in _wrapper(tmp_path, "status", **versions)[1]
    (tmp_path / ".env").touch()
    told = _wrapper(tmp_path, "search", "an owl", "--json", **versions)[1]
    assert told == "called: compose run --rm operator search an owl --json\n"


def test_the_dockerfile_is_clean() -> None:
    """Hadolint has nothing to say."""
    done = subprocess.run(
        [BIN / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_what_the_image_copies_is_let_in_and_exists() -> None:
    """The ignore file lets in what the Dockerfile copies, and nothing else of the checkout."""
    copied: set[str] = set()
    for sources in re.findall(
        r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE
    ):
        copied |= set(sources.split())
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert not [name for name in copied if not (ROOT / name).exists()]


def test_the_image_has_the_uv_that_was_tried() -> None:
    """Packages of one version each: the constraints, and the installer itself."""
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"uv==\d+\.\d+\.\d+", text)
    assert text.count("--constraints constraints.txt") == 1
    assert os.access(DEPLOY / "compose-env.sh", os.R_OK)
