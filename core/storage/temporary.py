"""Names under which programs keep a file while they write it, or beside one that they edit.

None of them names a sound: a program renames such a file when it is complete, or deletes it.
"""

import re

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
