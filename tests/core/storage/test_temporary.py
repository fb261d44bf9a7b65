"""Scratch files: others may read them, and nobody has to clean up."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HOLD = """
from audiofuse.core.storage.temporary import scratch_file
with scratch_file("audiofuse-") as (file, path):
    file.write(b"a sound")
    file.flush()
    print(path, flush=True)
    input()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere such a file has a name")
def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    """While it lives another process reads the file; once it is killed nothing is left."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        path = Path(holder.stdout.readline().strip())
        assert path.read_bytes() == b"a sound"
        holder.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []
