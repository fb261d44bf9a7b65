"""Pretrained parts: found in a folder, else downloaded once, checked, and read without code."""

import csv
import hashlib
import logging
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

import torch
from torch import Tensor

from core.errors import ConfigurationError
from core.mobilenet import AUDIOSET_CLASSES
from core.store import content_hash

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 30


@dataclass(frozen=True)
class Source:
    """A file that others publish: its name here, where it is released, its sha256 if known."""

    name: str
    url: str
    sha256: str = ""


MN04 = Source(
    "mn04_as_mAP_432.pt",
    "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/mn04_as_mAP_432.pt",
    "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c",
)
CLASS_NAMES = Source(
    "audioset_class_labels_indices.csv",
    "http://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/class_labels_indices.csv",
)


def locate(source: Source, folder: Path) -> Path:
    """Return the file from ``folder``, or download it there.

    Raises ``ConfigurationError`` when it is neither there nor to be had, or is not what it should
    be: a file that fails its checksum is not kept.
    """
    path = folder / source.name
    if not path.exists():
        _download(source, path)
    if source.sha256 and (found := content_hash(path)) != source.sha256:
        raise ConfigurationError(
            f"{path} is not the released file: sha256 {found}, expected {source.sha256}"
        )
    return path


def _download(source: Source, path: Path) -> None:
    log.info("downloading %s", source.url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(source.url, timeout=DOWNLOAD_TIMEOUT_S) as answer:  # noqa: S310 - the URLs are the constants above
            content = answer.read()
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise ConfigurationError(
            f"{path.name} is not in {path.parent} and cannot be downloaded from {source.url} "
            f"({error}); put the file there, or set AUDIOFUSE_PRETRAINED to the folder that has it"
        ) from error
    if source.sha256 and hashlib.sha256(content).hexdigest() != source.sha256:
        raise ConfigurationError(f"the download of {source.url} fails its checksum")
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).rename(path)


def load_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """Read an EfficientAT state dict; what is not a tensor is refused, nothing is executed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different class for each way a file can be wrong
        raise ConfigurationError(f"{path} is no checkpoint of plain tensors: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigurationError(f"{path} is not a flat state dict")
    return state


def read_class_names(path: Path) -> list[str]:
    """Read the AudioSet class names in the order of the tower's logits."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names = [row["display_name"] for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, KeyError) as error:
        raise ConfigurationError(f"{path} is no list of AudioSet classes: {error!r}") from error
    if len(names) != AUDIOSET_CLASSES:
        raise ConfigurationError(f"{path} names {len(names)} classes, not {AUDIOSET_CLASSES}")
    return names
