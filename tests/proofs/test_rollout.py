"""A hot swap under load, a short one; ``make rollout`` is the long one, with everything killed."""

import subprocess
import sys
from pathlib import Path

import pytest

PROOF = Path(__file__).parent / "rollout.py"


@pytest.mark.timeout(240)
def test_the_encoder_is_exchanged_under_load() -> None:
    """Real workers, changes and queries all the while: none fails or mixes, and nothing is lost."""
    options = ["--sounds", "30", "--before", "2", "--no-kill", "--swaps", "0"]
    done = subprocess.run(
        [sys.executable, str(PROOF), *options],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
