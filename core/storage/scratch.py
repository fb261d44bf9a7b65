"""Files for what is passing: a process that is killed leaves none of them behind.

On Linux such a file has no name from the start, so the kernel frees it with the last process that
holds it; others of the same user open it by the way that leads through its owner. Elsewhere it has
a name until it is closed, and a killed process leaves it.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def scratch_file(prefix: str) -> Iterator[tuple[IO[bytes], Path]]:
    """Yield an empty file in the temporary folder, and the path by which it is opened meanwhile."""
    if sys.platform == "linux":
        with tempfile.TemporaryFile(prefix=prefix) as file:
            yield file, Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    else:
        with tempfile.NamedTemporaryFile(prefix=prefix) as named:
            yield named.file, Path(named.name)
