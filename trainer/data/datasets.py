"""Where clips come from: manifests, ClothoV2, AudioCaps, WavCaps, and buckets as are indexed.

A table that cannot be read raises ``ConfigurationError`` with file and line. Sounds that a table
names and the disk does not hold are left out, and how many is logged: AudioCaps' clips vanish from
YouTube one by one.
"""

from pathlib import Path

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.benchmarks import published_reader
from audiofuse.core.evaluation.clips import read_manifest
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import open_store
from audiofuse.trainer.data.bucket import Dataset, read_bucket
from audiofuse.trainer.data.cache import Progress, no_progress
from audiofuse.trainer.data.wavcaps import read_wavcaps, wavcaps_tables


def read_dataset(
    source: str, settings: Settings, downloads: Path, progress: Progress = no_progress
) -> Dataset:
    """Read clips from wherever ``source`` is: never none.

    A file ``*.jsonl`` is a manifest; a folder with the tables of ClothoV2, AudioCaps or WavCaps is
    that; any other folder, and ``s3://name``, is a bucket. ``settings`` tell how S3 is reached,
    ``downloads`` keeps its objects, ``progress`` sees the objects of a bucket.
    """
    dataset = _read_any(source, settings, downloads, progress)
    if not dataset.clips:
        raise ConfigurationError(f"{source} holds no clip that can be used")
    return dataset


def _read_any(source: str, settings: Settings, downloads: Path, progress: Progress) -> Dataset:
    path = Path(source).expanduser()
    if not source.startswith("s3://"):
        if path.suffix == ".jsonl":
            return Dataset(read_manifest(path))
        if read_published := published_reader(path):
            return Dataset(read_published(path), published=True)
        if wavcaps_tables(path):
            return Dataset(read_wavcaps(path), gives_way=True)
    store = open_store(settings.model_copy(update={"bucket": source, "buckets": None}))
    return read_bucket(store, downloads, progress)
