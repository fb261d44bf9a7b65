"""Temporary files: those of other programs, which name no sound, and our own, which vanish.

A program renames such a file when it is complete, or deletes it. Our own: on Linux such a file has
no name from the start, so the kernel frees it with the last process that holds it, also a killed
one; others of the same user open it by the way that leads through its owner. Elsewhere it has a
name until it is closed, and a killed process leaves it.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ENDINGS = (
    ".part", ".partial", ".filepart", ".crdownload", ".opdownload", ".download",  # browsers, copies
    ".tmp", ".temp", ".aria2", ".!ut",
    ".swp", ".swo", ".swx", "~",  # editors
)  # fmt: skip
HIDDEN = (
    r"\..+\.[A-Za-z0-9]{6}"  # rsync: .rain.wav.x1Y2z3
    r"|\.(goutputstream-|nfs|fuse_hidden).*"  # GNOME, NFS, FUSE
    r"|\.(~lock\.|#|_).*"  # LibreOffice, Emacs, macOS
    r"|#.*#|~\$.*|4913"  # Emacs, Office, Vim
)
FOLDERS = (".~tmp~", ".rsync-partial")  # rsync's, for files that are not complete

_HIDDEN = re.compile(HIDDEN, re.DOTALL)


def is_temporary(key: str) -> bool:
    """Whether a key is named like a temporary file, or lies in a folder of such files."""
    *folders, name = key.split("/")
    return (
        name.lower().endswith(ENDINGS)
        or _HIDDEN.fullmatch(name) is not None
        or any(folder in FOLDERS for folder in folders)
    )


@contextmanager
def scratch_file(prefix: str) -> Iterator[tuple[IO[bytes], Path]]:
    """Yield an empty file in the temporary folder, and the path by which it is opened meanwhile."""
    if sys.platform == "linux":
        with tempfile.TemporaryFile(prefix=prefix) as file:
            yield file, Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    else:
        with tempfile.NamedTemporaryFile(prefix=prefix) as named:
            yield named.file, Path(named.name)
