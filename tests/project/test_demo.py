"""``make demo`` does what it shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_the_demo_runs_from_drop_to_delete() -> None:
    """Every example is indexed, mute files and a howl in a recording are found by listening.

    Nothing is left running.
    """
    script = str(ROOT / "examples" / "demo.py")
    done = subprocess.run(
        [sys.executable, script], env=os.environ | {"COLUMNS": "160"},  # else paths are cut
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rooster = done.stdout.split('"a rooster crowing at dawn"')[1].split("field-recording-07.flac")[
        0
    ]
    assert len(rooster.splitlines()) <= 5  # the title, the table's head, and the first row
    howling = done.stdout.split('"a wolf howling"')[1].split('"water flowing')[0]
    assert re.search(r"recorder-left-out.*\b0:50\b", howling)
    assert "owl.wav deleted: gone after" in done.stdout
    commands = [" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(ROOT / ".demo") in command]
