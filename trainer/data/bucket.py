"""Clips of a bucket: its sounds with their sidecars, as a worker would index them."""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from audiofuse.core.errors import ConfigurationError, ObjectChanged, Reason, Rejected, Unavailable
from audiofuse.core.evaluation.clips import Clip, ask_for_captions, clip_of
from audiofuse.core.items import MAX_SIDECAR_BYTES, Metadata, ObjectInfo, is_audio, sidecar_keys
from audiofuse.core.storage.store import FolderStore, Store
from audiofuse.trainer.data.cache import Progress, no_progress

log = logging.getLogger(__name__)

FETCHERS = 8  # threads that wait for the bucket; more hide a slow bucket, and hold more connections
MAX_LOOKS = 10  # at an object that is replaced while it is read, before it is given up


@dataclass(frozen=True)
class Dataset:
    """Clips, and the keys of a bucket's sidecars that are broken, with the reason.

    ``published``: the splits are those of a benchmark, and are kept whatever they share.
    ``gives_way``: it was collected from where benchmarks were, so that what is in their splits to
    judge by is left out of it.
    """

    clips: list[Clip]
    rejected: list[tuple[str, Rejected]] = field(default_factory=list)
    published: bool = False
    gives_way: bool = False


def read_bucket(store: Store, downloads: Path, progress: Progress = no_progress) -> Dataset:
    """Read every sound of a bucket, with the words that a worker would index it with.

    What ``clip_of`` takes from a sidecar says what the clip is for. A clip with a broken sidecar is
    left out, for nothing tells which split it belongs to. The sounds of a folder stay where they
    are; those of S3 are fetched into ``downloads`` once for each etag.
    Raises ``Unavailable`` when the bucket cannot answer, ``ConfigurationError`` when ``downloads``
    cannot be written to.
    """
    keys = [info.key for info in store.list()]
    listed = set(keys)
    pool = ThreadPoolExecutor(FETCHERS)
    try:
        futures = [
            pool.submit(
                _read_item, store, key, [k for k in sidecar_keys(key) if k in listed], downloads
            )
            for key in keys
            if is_audio(key)
        ]
        read = [future.result() for future in progress(futures)]
    except OSError as error:
        raise ConfigurationError(f"cannot keep sounds in {downloads}: {error}") from error
    finally:
        pool.shutdown(cancel_futures=True)
    return Dataset(
        [clip for clip in read if isinstance(clip, Clip)],
        [broken for broken in read if isinstance(broken, tuple)],
    )


def _read_item(
    store: Store, key: str, sidecars: Sequence[str], downloads: Path
) -> Clip | tuple[str, Rejected] | None:
    """Read one item; ``None`` when it is gone by now."""
    for _ in range(MAX_LOOKS):
        try:
            return _read_as_seen(store, key, sidecars, downloads)
        except ObjectChanged as change:
            log.info("%s: looking again, %s", key, change)
    raise Unavailable(f"{key} keeps changing; try again when nothing writes to the bucket")


def _read_as_seen(
    store: Store, key: str, sidecars: Sequence[str], downloads: Path
) -> Clip | tuple[str, Rejected] | None:
    audio = store.head(key)
    if audio is None:
        return None
    sidecar = next(filter(None, map(store.head, sidecars)), None)
    try:
        metadata = _read_sidecar(store, sidecar).filled_from(audio.user_metadata)
        clip = clip_of(Path(key), f"{store.bucket}/{key}", metadata)
    except Rejected as error:
        return (sidecar.key if sidecar else key), error
    path = store.root / key if isinstance(store, FolderStore) else _fetch(store, audio, downloads)
    collection = clip.collection or store.bucket
    return ask_for_captions(replace(clip, path=path, collection=collection))


def _read_sidecar(store: Store, sidecar: ObjectInfo | None) -> Metadata:
    if sidecar is None:
        return Metadata()
    if sidecar.size > MAX_SIDECAR_BYTES:
        detail = f"{sidecar.size} bytes; a sidecar has at most {MAX_SIDECAR_BYTES}"
        raise Rejected(Reason.BAD_SIDECAR, detail)
    return Metadata.from_json(store.read(sidecar))


def _fetch(store: Store, audio: ObjectInfo, downloads: Path) -> Path:
    """Return the file that holds the object as it is now; one rename makes it."""
    state = f"{store.bucket}/{audio.key}\0{audio.etag}"
    name = hashlib.sha256(state.encode()).hexdigest()[:32]
    path = downloads / (name + PurePosixPath(audio.key).suffix)
    if not path.exists():
        downloads.mkdir(parents=True, exist_ok=True)
        with (
            store.open(audio) as opened,
            tempfile.TemporaryDirectory(dir=downloads) as unfinished,
        ):
            Path(shutil.copyfile(opened, Path(unfinished, path.name))).rename(path)
    return path
