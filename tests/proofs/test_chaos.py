"""The chaos, a short one; ``make chaos`` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parent / "chaos.py"
SCENARIOS = ("storm", "deleted-in-work", "malformed-files", "qdrant-refuses")


@pytest.mark.timeout(240)
def test_whatever_happens_the_index_equals_the_bucket() -> None:
    """Some of the scenarios, with two workers: index and dead letters are what they must be."""
    chosen = [word for name in SCENARIOS for word in ("--scenario", name)]
    done = subprocess.run(
        [sys.executable, str(CHAOS), *chosen, "--scale", "0.2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
