"""A bundle as files: what it must hold, whether it still does, and what can be told without torch.

Which file is for what: ``core.bundles.bundle``, which makes them.
"""

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open

from audiofuse.core.errors import BundleError, ConfigurationError
from audiofuse.core.model.config import EncoderConfig
from audiofuse.core.storage.store import content_hash

FORMAT = 1
CONFIG, WEIGHTS, TOKENIZER, QUERY = "config.json", "model.safetensors", "tokenizer", "query"
METRICS, CARD, MANIFEST = "metrics.json", "README.md", "manifest.json"
METADATA_TOKENIZER = "metadata_tokenizer"
VERSION_HASH_DIGITS = 6
NOT_LEARNT = frozenset({"running_mean", "running_var", "num_batches_tracked"})


class FileEntry(BaseModel):
    """What the manifest says of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    size: int
    sha256: str


class Manifest(BaseModel):
    """``manifest.json``; paths are relative to the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int
    name: str
    files: dict[str, FileEntry]

    @property
    def size(self) -> int:
        """All files together, in bytes."""
        return sum(entry.size for entry in self.files.values())


@dataclass(frozen=True)
class Facts:
    """What a bundle tells of itself. Sizes are in bytes; parameters are what is learnt."""

    version: str
    size: int
    files: dict[str, int]
    parameters: dict[str, int]
    config: dict[str, Any]
    metrics: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return asdict(self)


def file_entries(folder: Path) -> dict[str, FileEntry]:
    """Return what a manifest must say of the files that are in a folder now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            size=path.stat().st_size, sha256=content_hash(path)
        )
        for path in paths
    }


def bundle_version(folder: Path) -> str:
    """Return the version of a bundle: its name and the first digits of its manifest's sha256."""
    content = read_file(folder / MANIFEST)
    digest = hashlib.sha256(content).hexdigest()[:VERSION_HASH_DIGITS]
    return f"{_parse_manifest(folder, content).name}-{digest}"


def verify_bundle(folder: Path) -> Manifest:
    """Check every file against the manifest; ``BundleError`` names the first that differs."""
    manifest = _parse_manifest(folder, read_file(folder / MANIFEST))
    present = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    }
    if foreign := sorted(present - manifest.files.keys() - {MANIFEST}):
        raise BundleError(f"the bundle {folder} holds a file its manifest does not: {foreign[0]}")
    for name, entry in manifest.files.items():
        path = _inside(folder, name)
        if not path.is_file():
            raise BundleError(f"the bundle {folder} lacks {name}")
        if path.stat().st_size != entry.size or content_hash(path) != entry.sha256:
            raise BundleError(f"the bundle {folder} is damaged: {name} differs from its manifest")
    return manifest


def inspect_bundle(folder: Path) -> Facts:
    """Verify a bundle and tell what is in it."""
    manifest = verify_bundle(folder)
    try:
        return Facts(
            version=bundle_version(folder),
            size=manifest.size,
            files={name: entry.size for name, entry in sorted(manifest.files.items())},
            parameters=_parameters(folder / WEIGHTS),
            config=json.loads(read_file(folder / CONFIG)),
            metrics=json.loads(read_file(folder / METRICS)),
        )
    except (SafetensorError, ValueError, OSError) as error:
        raise BundleError(f"the bundle {folder} does not describe an encoder: {error}") from error


def _parameters(weights: Path) -> dict[str, int]:
    """Count what is learnt in each part of the encoder."""
    counts: Counter[str] = Counter()
    with safe_open(weights, framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - it is no dictionary
            part, *_, last = name.split(".")
            if last not in NOT_LEARNT:
                counts[part] += math.prod(tensors.get_slice(name).get_shape())
    return dict(sorted(counts.items()))


def audio_fingerprint(folder: Path, config: EncoderConfig) -> str:
    """Return a fingerprint of what makes a bundle's audio vectors, whatever computes them."""
    audio = config.audio.model_dump_json(exclude={"head"})
    preprocessing = config.preprocessing.model_dump_json(exclude={"text"})
    digest = hashlib.sha256((audio + preprocessing).encode())
    with safe_open(folder / WEIGHTS, framework="numpy") as tensors:
        for name in sorted(tensors.keys()):
            if name.startswith("audio_tower.") and not name.startswith("audio_tower.classifier."):
                digest.update(name.encode())
                digest.update(tensors.get_tensor(name).tobytes())
    return digest.hexdigest()


def copy_query_tower(folder: Path, out: Path) -> None:
    """Verify a bundle and copy the query tower out of it, to the new folder ``out``."""
    verify_bundle(folder)
    if not (folder / QUERY).is_dir():
        raise BundleError(f"the bundle {folder} has no query tower: save it again with audiofuse")
    if out.exists():
        raise ConfigurationError(f"{out} exists already: name a folder that does not")
    try:
        shutil.copytree(folder / QUERY, out)
    except OSError as error:
        raise ConfigurationError(f"cannot write {out}: {error}") from error


def _parse_manifest(folder: Path, content: bytes) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise BundleError(f"{folder / MANIFEST} is no bundle manifest: {error}") from error
    if manifest.format != FORMAT:
        raise BundleError(
            f"the bundle {folder} has format {manifest.format}; this version reads {FORMAT}"
        )
    return manifest


def _inside(folder: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or (folder / path).is_symlink():
        raise BundleError(f"the bundle {folder} names a file outside itself: {name}")
    return folder / path


def read_file(path: Path) -> bytes:
    """Read one file of a bundle."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
