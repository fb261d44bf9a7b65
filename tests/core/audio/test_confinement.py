"""What decodes anybody's files computes, and can do nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from audiofuse.core.audio.confinement import Confinement, bare_environment

TRIED = """
import ctypes, os, signal, socket, subprocess, sys
from pathlib import Path
from audiofuse.core.audio.confinement import confine

here = Path(sys.argv[1])
first, second = socket.socketpair()
already = open(here / "sound")
attempts = {
    "reads a file": lambda: (here / "sound").read_text(),
    "lists a folder": lambda: list(here.iterdir()),
    "writes a file": lambda: (here / "new").write_text("x"),
    "removes a file": lambda: (here / "sound").unlink(),
    "looks into its parent": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "signals its parent": lambda: os.kill(os.getppid(), signal.SIGWINCH),
    "opens a socket of TCP": lambda: socket.socket(),
    "opens a socket of UDP": lambda: socket.socket(type=socket.SOCK_DGRAM),
    "opens a local socket": lambda: socket.socket(socket.AF_UNIX),
    "runs a program": lambda: subprocess.run(["/bin/true"]),
}
print(confine().name)
for name, attempt in attempts.items():
    try:
        attempt()
    except PermissionError:
        continue
    print(name)
import wave  # a module that nothing had imported
second.send(already.read().encode())
print("works on what it has:", first.recv(9).decode())
"""


def test_who_is_confined_can_only_compute(tmp_path: Path) -> None:
    """No file, process or network is reached; what is open already is, and Python's modules are."""
    (tmp_path / "sound").write_text("a sound")
    done = subprocess.run(
        [sys.executable, "-c", TRIED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    how_far, *told = done.stdout.splitlines()
    if how_far != Confinement.FULL.name:
        pytest.skip("this kernel has no Landlock, or no version of it that knows signals")
    assert told == ["works on what it has: a sound"], done.stderr
    assert (tmp_path / "sound").exists()


def test_secrets_stay_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A confined process is started without what may be a secret, and with one thread."""
    monkeypatch.setenv("AUDIOFUSE_BROKER_URL", "redis://:secret@here")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    given = bare_environment()
    assert "secret" not in " ".join(given.values())
    assert given["OMP_NUM_THREADS"] == "1"
    assert given["PATH"]
