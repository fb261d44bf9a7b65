"""Where clips come from: manifests, ClothoV2, AudioCaps, and buckets like those that are indexed.

A table that cannot be read raises ``ConfigurationError`` with file and line. Sounds that a table
names and the disk does not hold are left out, and how many is logged: AudioCaps' clips vanish from
YouTube one by one.
"""

import csv
import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from audiofuse.core.errors import ConfigurationError, ObjectChanged, Reason, Rejected, Unavailable
from audiofuse.core.evaluation.clips import Clip, ask_for_captions, clip_of, read_manifest
from audiofuse.core.items import MAX_SIDECAR_BYTES, Metadata, ObjectInfo, is_audio, sidecar_keys
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore, Store, open_store
from audiofuse.trainer.data.cache import Progress, unseen

log = logging.getLogger(__name__)

TRAIN, VAL, TEST = "train", "val", "test"
CLOTHO_SPLITS = {"development": TRAIN, "validation": VAL, "evaluation": TEST}
CLOTHO_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
AUDIOCAPS_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
# A YouTube id has 11 characters; the end of a segment is left out, as the tables do not tell it.
YOUTUBE_SEGMENT = re.compile(r"(.{11}_\d+)_\d+")
AUDIOSET_COLUMNS = 4  # YTID, start_seconds, end_seconds, positive_labels
FETCHERS = 8  # threads that wait for the bucket
MAX_LOOKS = 10  # at an object that is replaced while it is read
SHOWN_LEAKS = 5


@dataclass(frozen=True)
class Dataset:
    """Clips, and the keys of a bucket's sidecars that are broken, with the reason."""

    clips: list[Clip]
    rejected: list[tuple[str, Rejected]] = field(default_factory=list)


def read_dataset(
    source: str, settings: Settings, downloads: Path, progress: Progress = unseen
) -> Dataset:
    """Read clips from wherever ``source`` is: never none.

    A file ``*.jsonl`` is a manifest; a folder with the tables of ClothoV2 or AudioCaps is that; any
    other folder, and ``s3://name``, is a bucket. ``settings`` tell how S3 is reached, ``downloads``
    keeps its objects, ``progress`` sees the objects of a bucket.
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
        if _clotho_tables(path):
            return Dataset(read_clotho(path))
        if _audiocaps_tables(path):
            return Dataset(read_audiocaps(path))
    store = open_store(settings.model_copy(update={"bucket": source}))
    return read_bucket(store, downloads, progress)


# ClothoV2


def read_clotho(folder: Path) -> list[Clip]:
    """Read those splits of ClothoV2 that the folder has.

    Beside ``clotho_captions_development.csv`` lie the sounds in ``development/`` and, if there is
    one, ``clotho_metadata_development.csv``, whose keywords are the metadata; likewise for
    ``validation`` and ``evaluation``. A title is not given, as the paper uses none. The identity is
    the number on Freesound, so that clips of other collections that come from there are known.
    """
    tables = _clotho_tables(folder)
    return [clip for name in tables for clip in _read_clotho_split(folder, name)]


def _clotho_tables(folder: Path) -> list[str]:
    return [name for name in CLOTHO_SPLITS if (folder / f"clotho_captions_{name}.csv").is_file()]


def _read_clotho_split(folder: Path, name: str) -> list[Clip]:
    described = _read_clotho_metadata(folder / f"clotho_metadata_{name}.csv")
    sounds = {path.name: path for path in _sounds_in(folder / name)}
    table = folder / f"clotho_captions_{name}.csv"
    clips = []
    rows = list(_rows(table, ("file_name", *CLOTHO_CAPTIONS)))
    for _, row in rows:
        if path := sounds.get(row["file_name"]):
            facts = described.get(path.name, {})
            clips.append(_clotho_clip(path, CLOTHO_SPLITS[name], row, facts))
    _log_missing(table, len(rows), len(clips))
    return clips


def _read_clotho_metadata(table: Path) -> dict[str, dict[str, str]]:
    if not table.is_file():
        return {}
    columns = ("file_name", "keywords", "sound_id", "license")
    return {row["file_name"]: row for _, row in _rows(table, columns, "latin-1")}


def _clotho_clip(path: Path, split: str, row: Mapping[str, str], facts: Mapping[str, str]) -> Clip:
    sound_id = facts.get("sound_id", "")
    return ask_for_captions(
        Clip(
            path=path,
            # It is "Not found" for some.
            identity=f"freesound-{sound_id}" if sound_id.isdecimal() else path.name,
            split=split,
            metadata=Metadata(keywords=_parts(facts.get("keywords", ""), ";")),
            captions=_sentences(row[column] for column in CLOTHO_CAPTIONS),
            licence=facts.get("license", ""),
            collection="clotho",
        )
    )


# AudioCaps


def read_audiocaps(folder: Path) -> list[Clip]:
    """Read those splits of AudioCaps that the folder has.

    The tables are ``train.csv``, ``val.csv``, ``test.csv`` or ``audiocaps_train.csv`` and so on;
    rows of one YouTube clip are its captions. The sounds lie in ``train/``, ``val/``, ``test/`` or
    all in ``audio/``, named in one of the ways of ``_audiocaps_names``. AudioSet's labels are the
    metadata, if its ``*_segments.csv`` and ``*class_labels_indices.csv`` are in the folder too.
    """
    tables = _audiocaps_tables(folder)
    found = [
        (split, path, rows)
        for split, table in tables.items()
        for path, rows in _read_audiocaps_split(folder, split, table)
    ]
    labels = _read_audioset_labels(folder, {rows[0]["youtube_id"] for *_, rows in found})
    return [
        ask_for_captions(
            Clip(
                path=path,
                identity=f"youtube-{rows[0]['youtube_id']}",
                split=split,
                metadata=Metadata(labels=labels.get(rows[0]["youtube_id"], ())),
                captions=_sentences(row["caption"] for row in rows),
                collection="audiocaps",
            )
        )
        for split, path, rows in found
    ]


def _audiocaps_tables(folder: Path) -> dict[str, Path]:
    names = {split: (f"{split}.csv", f"audiocaps_{split}.csv") for split in (TRAIN, VAL, TEST)}
    found = {
        split: [folder / name for name in either if (folder / name).is_file()]
        for split, either in names.items()
    }
    return {split: paths[0] for split, paths in found.items() if paths}


def _read_audiocaps_split(
    folder: Path, split: str, table: Path
) -> list[tuple[Path, list[dict[str, str]]]]:
    """Return each clip of a split that has a sound, with its rows in the order of the table."""
    sounds: dict[str, Path] = {}
    for path in (*_sounds_in(folder / split), *_sounds_in(folder / "audio")):
        segment = YOUTUBE_SEGMENT.fullmatch(path.stem)
        sounds.setdefault(segment[1] if segment else path.stem, path)
    clips: dict[tuple[str, str], list[dict[str, str]]] = {}
    for number, row in _rows(table, AUDIOCAPS_COLUMNS):
        if not row["start_time"].isdecimal():
            raise _wrong(table, number, f"start_time is no number of seconds: {row['start_time']}")
        clips.setdefault((row["youtube_id"], row["start_time"]), []).append(row)
    named = [(_audiocaps_names(rows), rows) for rows in clips.values()]
    found = [
        (sounds[present[0]], rows)
        for names, rows in named
        if (present := [name for name in names if name in sounds])
    ]
    _log_missing(table, len(clips), len(found))
    return found


def _audiocaps_names(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names without suffix that those who share AudioCaps give to a clip's sound.

    They go by YouTube's id, alone or with the start in seconds, as in AudioSet's archives with a Y
    before it or with start and end in milliseconds, or by the number of one of the captions.
    """
    youtube_id, start = rows[0]["youtube_id"], int(rows[0]["start_time"])
    return [
        youtube_id,
        f"Y{youtube_id}",
        f"{youtube_id}_{start}",
        f"{youtube_id}_{start * 1000}",
        *(row["audiocap_id"] for row in rows),
    ]


def _read_audioset_labels(folder: Path, youtube_ids: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the class names of those clips that the folder's AudioSet tables label."""
    tables = sorted(folder.glob("*_segments.csv"))
    if not tables:
        return {}
    names = _read_class_names(folder)
    labels = {}
    for table in tables:
        for number, row in _lines(table, skip_blanks=True):
            if row[0].startswith("#"):
                continue  # the heads of these tables are comments
            if len(row) != AUDIOSET_COLUMNS:
                raise _wrong(table, number, f"{len(row)} fields instead of {AUDIOSET_COLUMNS}")
            if row[0] in youtube_ids:
                labels[row[0]] = tuple(_name(names, mid, table, number) for mid in _parts(row[3]))
    return labels


def _read_class_names(folder: Path) -> dict[str, str]:
    """Return AudioSet's class names by machine id, as ``/m/09x0r``."""
    tables = sorted(folder.glob("*class_labels_indices.csv"))
    if not tables:
        raise ConfigurationError(
            f"{folder} has labels of AudioSet's segments, but no class_labels_indices.csv to name "
            "them"
        )
    return {row["mid"]: row["display_name"] for _, row in _rows(tables[0], ("mid", "display_name"))}


def _name(names: Mapping[str, str], mid: str, table: Path, number: int) -> str:
    if mid not in names:
        raise _wrong(table, number, f"no class has the machine id {mid}")
    return names[mid]


# Buckets


def read_bucket(store: Store, downloads: Path, progress: Progress = unseen) -> Dataset:
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
            store.open(audio) as lent,
            tempfile.TemporaryDirectory(dir=downloads) as unfinished,
        ):
            Path(shutil.copyfile(lent, Path(unfinished, path.name))).rename(path)
    return path


# Splits


def assign_splits(clips: Sequence[Clip], val_share: float, seed: int) -> list[Clip]:
    """Put clips without a split into train or val, all clips of one identity into the same.

    An identity that is in a split already stays there. Else it goes by a hash of ``seed`` and
    identity alone: about ``val_share`` of the identities are val, and more data moves none.
    """
    given = {clip.identity: clip.split for clip in clips if clip.split}

    def split_of(identity: str) -> str:
        digest = hashlib.sha256(f"{seed}\0{identity}".encode()).digest()
        drawn = int.from_bytes(digest[:8]) / 2**64  # in [0, 1)
        return given.get(identity) or (VAL if drawn < val_share else TRAIN)

    return [clip if clip.split else replace(clip, split=split_of(clip.identity)) for clip in clips]


def check_leakage(clips: Sequence[Clip], contents: Mapping[Path, str]) -> None:
    """Refuse a sound that is in two splits, by identity, file or content.

    ``contents`` are those of ``cache.Prepared``. Every split counts, so also ``test`` and
    ``distractor``. Raises ``ConfigurationError`` that names the first few.
    """
    leaks: dict[tuple[Path, ...], str] = {}
    criteria: list[tuple[str, Callable[[Clip], str | None]]] = [
        ("identity", lambda clip: clip.identity),
        ("file", lambda clip: str(clip.path.resolve())),
        ("content", lambda clip: contents.get(clip.path)),
    ]
    for name, of in criteria:
        for places in _in_several_splits(clips, of):
            shown = " and ".join(f"{c.path} ({c.split or 'no split'})" for c in places)
            leaks.setdefault(tuple(clip.path for clip in places), f"{shown} have one {name}")
    if leaks:
        first = "; ".join(list(leaks.values())[:SHOWN_LEAKS])
        more = "; ..." if len(leaks) > SHOWN_LEAKS else ""
        raise ConfigurationError(f"{len(leaks)} sounds are in several splits: {first}{more}")


def _in_several_splits(
    clips: Iterable[Clip], of: Callable[[Clip], str | None]
) -> Iterator[list[Clip]]:
    """Yield one clip of each split for what is in more than one."""
    places: dict[str, dict[str, Clip]] = {}
    for clip in clips:
        if (value := of(clip)) is not None:
            places.setdefault(value, {}).setdefault(clip.split, clip)
    yield from (list(each.values()) for each in places.values() if len(each) > 1)


# Tables


def _rows(
    table: Path, columns: Sequence[str], encoding: str = "utf-8-sig"
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row of a table by its columns' names, and the number of its line."""
    head: list[str] = []
    for number, row in _lines(table, encoding):
        if not head:
            head = row
            if lacking := [column for column in columns if column not in head]:
                raise _wrong(table, number, f"the table has no column {', '.join(lacking)}")
        elif len(row) != len(head):
            raise _wrong(table, number, f"{len(row)} fields instead of {len(head)}")
        else:
            yield number, dict(zip(head, row, strict=True))
    if not head:
        raise ConfigurationError(f"{table} is empty")


def _lines(
    table: Path, encoding: str = "utf-8-sig", *, skip_blanks: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each line that has any; ``skip_blanks``: of those after a comma."""
    try:
        with table.open("rb") as file:
            lines = (line.decode(encoding) for line in file)  # one by one, to know which is wrong
            reader = csv.reader(lines, skipinitialspace=skip_blanks, strict=True)
            try:
                yield from ((reader.line_num, row) for row in reader if row)
            except UnicodeDecodeError as error:
                raise _wrong(table, reader.line_num + 1, f"not {encoding}: {error}") from error
            except csv.Error as error:
                raise _wrong(table, reader.line_num, str(error)) from error
    except OSError as error:
        raise ConfigurationError(f"cannot read {table}: {error.strerror}") from error


def _wrong(table: Path, number: int, what: str) -> ConfigurationError:
    return ConfigurationError(f"{table}, line {number}: {what}")


def _sounds_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_audio(path.name))


def _log_missing(table: Path, named: int, found: int) -> None:
    if found < named:
        log.warning("%s: %d of %d clips have no sound file", table, named - found, named)


def _parts(joined: str, separator: str = ",") -> tuple[str, ...]:
    return _sentences(joined.split(separator))


def _sentences(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts if text.strip())
