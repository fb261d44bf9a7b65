"""What loads no encoder starts where there is no PyTorch, and without waiting for any."""

import subprocess
import sys

import pytest

BLOCKED = ("torch", "torchaudio", "transformers")


@pytest.mark.parametrize(
    "module",
    [
        "audiofuse.core.encoder.encoder",
        "audiofuse.core.search.search",
        "audiofuse.workers.intake.build",
        "audiofuse.workers.service.app",
    ],
)
def test_it_is_imported_without_torch(module: str) -> None:
    """Search, query service and intake are imported though PyTorch cannot be."""
    script = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED})); import {module}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
