"""The soak test, a short one; ``make soak`` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parent / "soak.py"


@pytest.mark.timeout(180)
def test_crashes_and_outages_lose_nothing() -> None:
    """Workers and broker killed, bucket and index away: in the end the index equals the bucket."""
    options = ["--messages", "120", "--kills", "1", "--kill-s", "3", "--outage-s", "3"]
    done = subprocess.run(
        [sys.executable, str(SOAK), *options, "--sample", "20"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
