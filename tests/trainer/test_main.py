"""How ``audiofuse-train`` starts, and what its children take over of that."""

import subprocess
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_decoding_processes_import_no_torch() -> None:
    """They import what was started, and what decodes: neither brings PyTorch."""
    started = tomllib.loads(PYPROJECT.read_text())["project"]["scripts"]["audiofuse-train"]
    module = started.split(":")[0]
    look = f"import sys, {module}, audiofuse.trainer.data.cache; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
