"""The folder of a host's sockets: nobody else's is touched, and a killed supervisor's goes."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from audiofuse.workers.host.sockets import DEVICE, socket_folder

HOLDER = f"""
import time
from audiofuse.workers.host.sockets import socket_folder

with socket_folder() as folder:
    (folder / "{DEVICE}").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a temporary folder of one's own, children too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_what_a_killed_supervisor_left_goes(temporary: Path) -> None:
    """The next start removes its folder, leaves that of one who lives, and its own goes with it."""
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        theirs = Path(one.stdout.readline().strip())
        with socket_folder() as ours:
            assert set(temporary.iterdir()) == {theirs, ours}
        one.kill()
    assert (theirs / DEVICE).exists()
    with socket_folder() as ours:
        assert set(temporary.iterdir()) == {ours}
    assert not any(temporary.iterdir())


def test_what_is_just_made_is_left_alone(temporary: Path) -> None:
    """A folder without the device's socket may be one whose supervisor is about to lock it."""
    made = Path(tempfile.mkdtemp(prefix="audiofuse-host-"))
    with socket_folder():
        assert made.exists()
    assert made.parent == temporary
