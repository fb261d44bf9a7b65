"""The proofs, short ones; ``make chaos``, ``make soak`` and ``make rollout`` are the long ones."""

import subprocess
import sys
from pathlib import Path

import pytest

SCENARIOS = ("storm", "deleted-in-work", "malformed-files", "qdrant-refuses")


def prove(name: str, *options: str) -> None:
    """Run a proof; it must end well."""
    program = Path(__file__).with_name(f"{name}.py")
    done = subprocess.run(
        [sys.executable, str(program), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(240)
def test_whatever_happens_the_index_equals_the_bucket() -> None:
    """Some of the scenarios, with two workers: index and dead letters are what they must be."""
    prove("chaos", *[word for name in SCENARIOS for word in ("--scenario", name)], "--scale", "0.1")


@pytest.mark.timeout(180)
def test_crashes_and_outages_lose_nothing() -> None:
    """Workers and broker killed, bucket and index away: in the end the index equals the bucket."""
    prove("soak", "--messages", "120", "--kills", "1", "--kill-s", "3", "--outage-s", "3",
          "--sample", "20")  # fmt: skip


@pytest.mark.timeout(240)
def test_the_encoder_is_exchanged_under_load() -> None:
    """Real workers, changes and queries all the while: none fails or mixes, and nothing is lost."""
    prove("rollout", "--sounds", "30", "--before", "2", "--no-kill", "--swaps", "0")
