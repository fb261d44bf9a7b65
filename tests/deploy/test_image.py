"""deploy/Dockerfile: clean, of this checkout only, of pinned tools."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent


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
