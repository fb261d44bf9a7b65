"""Docker alone: the image is clean, ./audiofuse says what it lacks, upload.py puts a folder."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripts import load_script

from audiofuse.core.errors import Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.boto import s3_client

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
    for name in ("prometheus", "grafana", "alertmanager"):
        (folder / "deploy" / name).mkdir(mode=0o700, exist_ok=True)
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
    if code == 0:  # other users read these, whatever umask the checkout was made with
        assert stat.S_IMODE((tmp_path / "deploy" / "prometheus").stat().st_mode) == 0o755


def test_a_command_is_one_of_the_operator(tmp_path: Path) -> None:
    """Without passwords it says what to do first; with them each word reaches the container."""
    versions = {"engine": "28.2.2", "compose": "2.40.3"}
    assert "run ./audiofuse up first" in _wrapper(tmp_path, "status", **versions)[1]
    (tmp_path / ".env").touch()
    told = _wrapper(tmp_path, "search", "an owl", "--json", **versions)[1]
    assert told == "called: compose run --rm operator search an owl --json\n"


def test_a_folder_is_uploaded_by_who_may_only_upload(tmp_path: Path) -> None:
    """The container without the owner's key gets the folder to read, as whoever calls."""
    (tmp_path / ".env").touch()
    (tmp_path / "my sounds").mkdir()
    versions = {"engine": "28.2.2", "compose": "2.40.3"}
    told = _wrapper(tmp_path, "upload", str(tmp_path / "my sounds"), **versions)[1]
    who, what = f"--user {os.getuid()}:{os.getgid()}", f"--volume {tmp_path}/my sounds:/upload:ro"
    assert told == f"called: compose run --rm {who} {what} uploader\n"


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
    installs = re.findall(r"uv pip install (.+?)(?=&&|\n\n|\n[A-Z])", text, re.DOTALL)
    ours = [each for each in installs if "/wheel" not in each]
    assert len(ours) == 2
    assert all("--constraints constraints.txt" in each for each in ours)
    assert os.access(DEPLOY / "compose-env.sh", os.R_OK)


def test_the_base_is_the_python_that_the_tests_run() -> None:
    """One base, a Python of the series that everything is tested on, on Debian's stable release."""
    text = (DEPLOY / "Dockerfile").read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
    (base,) = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) - stages
    classifiers = (ROOT / "pyproject.toml").read_text()
    (tested,) = re.findall(r"Python :: (\d+\.\d+)", classifiers)
    assert base.partition("@")[0] == f"python:{tested}-slim-trixie"


def test_whoever_has_an_index_of_his_own_reaches_no_other() -> None:
    """Each step that fetches packages is given the index of the build argument INDEX."""
    text = (DEPLOY / "Dockerfile").read_text()
    steps = re.findall(r"^RUN .+?(?<!\\)$", text, re.MULTILINE | re.DOTALL)
    fetches = [
        command
        for step in steps
        for command in step.split("&&")
        if re.search(r"pip install|uv build", command) and "/wheel/" not in command
    ]
    assert len(fetches) == 4
    assert all("${INDEX:+" in each for each in fetches)
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)
    assert all('ARG INDEX=""' in each for each in stages if "${INDEX" in each)


def test_a_bot_raises_what_is_pulled() -> None:
    """Renovate's configuration has it pin digests, and look at every file that names an image."""
    told = json.loads((ROOT / "renovate.json").read_text())
    assert "docker:pinDigests" in told["extends"]
    patterns = [x.strip("/") for x in told["kubernetes"]["managerFilePatterns"]]
    naming = [
        path.relative_to(ROOT).as_posix()
        for path in (DEPLOY / "kubernetes").rglob("*.yaml")
        if re.search(r"image: \S+:", path.read_text())
    ]
    assert naming
    assert all(any(re.search(each, path) for each in patterns) for path in naming)


def test_compose_has_the_archive_teach_only_where_that_is_wanted(tmp_path: Path) -> None:
    """The profile learn has the operator's rights, and looks again whatever came of it."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    improve, operator = services["improve"], services["operator"]
    assert improve["profiles"] == ["learn"]
    for name in ("environment", "secrets", "volumes"):
        assert improve[name] == operator[name]
    (script,) = improve["command"]
    for name, end in (("audiofuse-train", "exit 3"), ("sleep", "kill $PPID")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "$*"\n{end}\n')
        (tmp_path / name).chmod(0o755)
    said = subprocess.run(
        [*improve["entrypoint"], script], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.stdout.split() == ["improve", "--rollout", "7d"]
