"""The bundle: one immutable encoder version as a folder of JSON, safetensors and tokenizer files.

config.json         everything needed to rebuild the model
model.safetensors   its weights
tokenizer/          the text tower's tokenizer
metrics.json        what was measured on it, and how
README.md           the model card
manifest.json       size and sha256 of each file; the version is the name plus this file's hash
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from core.encoder import Encoder, EncoderConfig
from core.errors import BundleError, ConfigurationError
from core.settings import Settings
from core.store import content_hash

FORMAT = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
METRICS, CARD, MANIFEST = "metrics.json", "README.md", "manifest.json"
VERSION_HASH_DIGITS = 6
TOKENIZER_ORIGIN = frozenset({"is_local", "local_files_only", "name_or_path"})


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


def save_bundle(
    encoder: Encoder, parent: Path, name: str, card: str, metrics: Mapping[str, Any] | None = None
) -> Path:
    """Write the encoder as ``parent/<version>`` and return that folder.

    The folder appears whole or not at all. The same encoder, card and metrics always give the same
    version, so saving again changes nothing.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".saving-") as temporary:
        folder = Path(temporary, "bundle")
        folder.mkdir()
        _write_files(encoder, folder, card, metrics or {})
        manifest = Manifest(format=FORMAT, name=name, files=_entries(folder))
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        target = parent / bundle_version(folder)
        if not target.exists():
            folder.rename(target)
    return target


def _write_files(encoder: Encoder, folder: Path, card: str, metrics: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(encoder.config.model_dump_json(indent=2) + "\n")
    save_file({k: v.contiguous() for k, v in encoder.state_dict().items()}, folder / WEIGHTS)
    _save_tokenizer(encoder.text_tower.tokenizer, folder / TOKENIZER)
    (folder / METRICS).write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    (folder / CARD).write_text(card)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save what the tokenizer is, not where it came from or how it was last called.

    Else the same encoder, loaded or used, would be saved as another version.
    """
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)
    tokenizer_config = folder / "tokenizer_config.json"
    values = json.loads(tokenizer_config.read_text())
    kept = {key: value for key, value in values.items() if key not in TOKENIZER_ORIGIN}
    tokenizer_config.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def _entries(folder: Path) -> dict[str, FileEntry]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(
            size=path.stat().st_size, sha256=content_hash(path)
        )
        for path in paths
    }


def bundle_version(folder: Path) -> str:
    """Return the version of a bundle: its name and the first digits of its manifest's sha256."""
    content = _read(folder / MANIFEST)
    digest = hashlib.sha256(content).hexdigest()[:VERSION_HASH_DIGITS]
    return f"{_parse_manifest(folder, content).name}-{digest}"


def load_bundle(folder: Path) -> Encoder:
    """Verify a bundle against its manifest, then rebuild its encoder on the CPU.

    Raises ``BundleError`` before anything is built when a file is missing, changed or foreign.
    """
    verify_bundle(folder)
    try:
        config = EncoderConfig.model_validate_json(_read(folder / CONFIG))
        tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)
        encoder = Encoder.build(config, tokenizer)
        encoder.load_state_dict(load_file(folder / WEIGHTS))
    except (ValidationError, SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise BundleError(f"the bundle {folder} does not describe an encoder: {error}") from error
    return encoder


def load_encoder(settings: Settings) -> tuple[Encoder, str]:
    """Load the bundle that the settings name on the device they name; return it and its version.

    Raises ``ConfigurationError`` when no bundle is set, or CUDA is asked for and not usable:
    running slowly on the CPU instead would go unnoticed.
    """
    if settings.encoder is None:
        raise ConfigurationError("no encoder is set: give AUDIOFUSE_ENCODER a bundle's folder")
    usable = torch.cuda.is_available()
    if settings.device == "cuda" and not usable:
        raise ConfigurationError("AUDIOFUSE_DEVICE is cuda, but PyTorch finds no usable GPU")
    device = "cuda" if usable and settings.device != "cpu" else "cpu"
    return load_bundle(settings.encoder).to(device), bundle_version(settings.encoder)


def verify_bundle(folder: Path) -> Manifest:
    """Check every file against the manifest; ``BundleError`` names the first that differs."""
    manifest = _parse_manifest(folder, _read(folder / MANIFEST))
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {os.strerror(error.errno or 0)}") from error
