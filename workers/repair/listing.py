"""A listing of a bucket on S3 that outlives its process: who is killed does not list all anew.

    objects ──as they are listed──> HOME/reconcile/….jsonl ──the next process──> the same objects,
                                                                                 then what follows

A thousand objects take a request, so a large bucket takes an hour, and a hand-over to busy workers
lasts for longer. What was listed by an earlier process is some hours old: it is compared as an
inventory is (``inventory``), so what was indexed or rejected since is left alone. The file goes
once a comparison has been dealt with, and counts for nothing once it is old.
"""

import fcntl
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from audiofuse.core.items import ObjectInfo
from audiofuse.core.settings import Settings
from audiofuse.core.storage.mounts import MountedStore
from audiofuse.core.storage.s3 import S3Store
from audiofuse.core.storage.store import open_store
from audiofuse.workers.repair.inventory import Listing, open_inventory

log = logging.getLogger(__name__)

FOLDER = "reconcile"  # below AUDIOFUSE_HOME
# For so long a listing is gone on with. Raised, more that differs is left to the comparison after
# it; lowered, a listing that takes longer is begun anew.
GOES_ON_S = 6 * 3600
CLOCKS_MS = 5 * 60 * 1000  # by which the clocks of workers may differ from ours

Behind = Callable[[str], Iterator[ObjectInfo]]  # the objects behind a key, in the order of keys


@contextmanager
def listed(settings: Settings, prefix: str, inventory: str = "") -> Iterator[Listing | None]:
    """Lend what is compared under a prefix: an inventory, or a listing that may be gone on with.

    ``None`` stands for the bucket as it is: a folder, several buckets, or no place to keep it.
    Where whoever borrows it ends without an error the listing is forgotten.
    """
    if inventory:
        yield open_inventory(settings, inventory, prefix)
        return
    behind = _in_order(settings, prefix)
    file = _opened(settings, prefix) if behind else None
    if behind is None or file is None:
        yield None
        return
    with file:
        yield _gone_on_with(file, behind)
        Path(file.name).unlink(missing_ok=True)


def _in_order(settings: Settings, prefix: str) -> Behind | None:
    """Return what lists in the order of keys; ``None`` for what has no order, or several."""
    store = open_store(settings)
    if isinstance(store, S3Store):
        return lambda after: store.list(prefix, after)
    found = store.meant(prefix) if isinstance(store, MountedStore) else None
    if found is None or not isinstance(found[0].store, S3Store):
        return None
    mounted, inner, s3 = *found, found[0].store
    return lambda after: map(mounted.named, s3.list(inner, after.removeprefix(mounted.top)))


def _opened(settings: Settings, prefix: str) -> IO[bytes] | None:
    """Open the file of a listing for us alone; ``None`` if another process has it."""
    secret = settings.buckets.get_secret_value() if settings.buckets else ""
    of = json.dumps([settings.bucket, settings.s3_endpoint_url, secret, prefix])
    path = settings.home / FOLDER / f"{hashlib.sha256(of.encode()).hexdigest()[:16]}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for each in path.parent.glob("*.jsonl"):
            if time.time() - each.stat().st_mtime > GOES_ON_S:
                each.unlink()
        with ExitStack() as opened:
            file = opened.enter_context(path.open("a+b"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            opened.pop_all()
    except OSError as error:
        log.info("a listing that is killed will be begun anew: %s", error)
        return None
    return file


def _gone_on_with(file: IO[bytes], behind: Behind) -> Listing:
    """Return the listing of a file and what follows; a new one if it is old, or none."""
    file.seek(0)
    now_ms = time.time() * 1000
    try:
        began_ms = float(json.loads(file.readline()))
    except (ValueError, TypeError):
        began_ms = -math.inf
    if now_ms - began_ms < GOES_ON_S * 1000:
        log.info("going on with a listing of %.0f minutes ago", (now_ms - began_ms) / 60_000)
        return Listing(_all(file, behind), began_ms - CLOCKS_MS, is_inventory=False)
    file.truncate(0)
    file.write(b"%d\n" % now_ms)
    return Listing(_all(file, behind), math.inf, is_inventory=False)


def _all(file: IO[bytes], behind: Behind) -> Iterator[ObjectInfo]:
    """Yield what the file has, then what is listed behind that, which it has from then on."""
    last, end = "", file.tell()
    for line in file:
        if not line.endswith(b"\n"):  # the last one, of a process that was killed
            break
        info = ObjectInfo(*json.loads(line))
        yield info
        last, end = info.key, end + len(line)
    file.truncate(end)
    is_kept = True
    for info in behind(last):
        is_kept = is_kept and _keep(file, info)
        yield info


def _keep(file: IO[bytes], info: ObjectInfo) -> bool:
    """Write an object down; return whether the next is to be written, too."""
    try:
        told = json.dumps([info.key, info.etag, info.size, info.modified_ms])
        file.write(told.encode() + b"\n")
    except OSError as error:
        log.warning("a listing that is killed will be begun anew: %s", error)
        return False
    return True
