"""Benchmarks that nothing runs by itself still begin."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_not_measured() -> None:
    """What measures a GPU says that there is none, by exit code 2, instead of measuring a CPU."""
    paths = [*sys.path, str(TESTS / "benchmarks"), str(TESTS / "support")]
    done = subprocess.run(
        [sys.executable, TESTS / "benchmarks" / "gpu"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "finds no usable GPU" in done.stderr
