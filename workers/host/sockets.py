"""The folder of a host's sockets, which goes with it, or, if it was killed, once another starts."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "audiofuse-host-"
DEVICE = "device"  # the socket at which the device process listens


@contextmanager
def socket_folder() -> Iterator[Path]:
    """Lend a new folder in the temporary one, and remove those whose supervisors were killed.

    A supervisor holds its folder's lock, of which the kernel frees whoever dies. It makes the
    device's socket with the lock held, so that a folder without one is nobody's to judge.
    """
    for socket in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{DEVICE}"):
        with (
            suppress(OSError),
            _locked(socket.parent),
        ):  # its supervisor lives, or is another user's
            shutil.rmtree(socket.parent)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, _locked(Path(name)):
        yield Path(name)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; raises ``OSError`` where somebody else does, or may alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
