"""Pretrained parts: found in a folder, else downloaded once, checked, and read without code."""

import csv
import logging
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote

import torch
from torch import Tensor

from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import AudioConfig
from audiofuse.core.model.mobilenet import AUDIOSET_CLASSES
from audiofuse.core.storage.store import content_hash

log = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 30


@dataclass(frozen=True)
class Source:
    """A file that others publish: its name here, where it is released, its sha256 if known."""

    name: str
    url: str
    sha256: str = ""


RELEASE = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
# Every AudioSet checkpoint of the release; the number is its mean average precision there.
RELEASED = (
    "mn01_as_mAP_298.pt", "mn02_as_mAP_378.pt", "mn04_as_mAP_432.pt", "mn05_as_mAP_443.pt",
    "mn10_as_mAP_471.pt", "mn20_as_mAP_478.pt", "mn30_as_mAP_482.pt", "mn40_as_mAP_484.pt",
    "mn40_as_mAP_483.pt", "mn40_as_mAP_483(2).pt", "mn40_as_no_im_pre_mAP_483.pt",
    "mn40_as_no_im_pre_mAP_483(2).pt", "mn40_as_no_im_pre_mAP_482.pt", "mn40_as_ext_mAP_487.pt",
    "mn40_as_ext_mAP_486.pt", "mn40_as_ext_mAP_485.pt", "mn10_as_hop_5_mAP_475.pt",
    "mn10_as_hop_15_mAP_463.pt", "mn10_as_hop_20_mAP_456.pt", "mn10_as_hop_25_mAP_447.pt",
    "mn10_as_mels_40_mAP_453.pt", "mn10_as_mels_64_mAP_461.pt", "mn10_as_mels_256_mAP_474.pt",
    "mn10_as_fc_mAP_465.pt", "mn10_as_fc_s2221_mAP_466.pt", "mn10_as_fc_s2211_mAP_466.pt",
)  # fmt: skip
SHA256 = {  # of the files that were seen; the others are trusted as the release page serves them
    "mn04_as_mAP_432.pt": "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c",
}
WIDTH = re.compile(r"^mn(\d\d)_")
HOP, MELS, STRIDES = (
    re.compile(r"_hop_(\d+)_"),
    re.compile(r"_mels_(\d+)_"),
    re.compile(r"_s(\d{4})_"),
)
URL_HASH = "#sha256="
CLASS_NAMES = Source(
    "audioset_class_labels_indices.csv",
    "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/class_labels_indices.csv",
)


def checkpoint_source(name: str) -> Source:
    """Return where an EfficientAT checkpoint is released, by name, file name or URL.

    ``mn10_as`` is the first released file of that name; a URL may end in ``#sha256=...``.
    """
    if "://" in name:
        url, _, sha256 = name.partition(URL_HASH)
        return Source(url.rpartition("/")[2], url, sha256)
    files = [file for file in RELEASED if name in {file, file.partition("_mAP_")[0]}]
    if not files:
        known = ", ".join(dict.fromkeys(file.partition("_mAP_")[0] for file in RELEASED))
        raise ConfigurationError(f"no checkpoint, file or URL: {name}; released are {known}")
    return Source(files[0], RELEASE + quote(files[0]), SHA256.get(files[0], ""))


def audio_shape(file_name: str) -> AudioConfig:
    """Return the shape of a checkpoint, which its file name tells, as the release names them."""
    width = WIDTH.match(file_name)
    if width is None:
        raise ConfigurationError(
            f"the width of {file_name} is not known: name it as the release does, e.g. mn10_my.pt"
        )
    hop, mels, strides = (pattern.search(file_name) for pattern in (HOP, MELS, STRIDES))
    shape: dict[str, object] = {"width": int(width[1]) / 10}
    if hop:
        shape["hop_samples"] = int(hop[1]) * SAMPLE_RATE // 1000
    if mels:
        shape["mel_bands"] = int(mels[1])
    if "_fc_" in file_name:
        shape["classifier"] = "fully_convolutional"
    if strides:
        shape["strides"] = tuple(map(int, strides[1]))
    return AudioConfig.model_validate(shape)


def find_checkpoint(name: str, folder: Path) -> tuple[AudioConfig, Mapping[str, Tensor]]:
    """Find an audio checkpoint by path, name or URL; return its shape and its weights.

    Names and URLs are looked for in ``folder`` and else downloaded there.
    """
    path = Path(name) if Path(name).is_file() else locate(checkpoint_source(name), folder)
    return audio_shape(path.name), load_checkpoint(path)


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
        # What is in a temporary folder goes with it, and a file there has the mode of the umask.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as unfinished:
            part = Path(unfinished, path.name)
            _fetch(source.url, part)
            if source.sha256 and content_hash(part) != source.sha256:
                raise ConfigurationError(f"the download of {source.url} fails its checksum")
            part.rename(path)
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise ConfigurationError(
            f"{path.name} is not in {path.parent} and cannot be downloaded from {source.url} "
            f"({error}); put the file there, or set AUDIOFUSE_PRETRAINED to the folder that has it"
        ) from error


def _fetch(url: str, path: Path) -> None:
    """Stream what a URL answers to a file; ``IncompleteRead`` when it ends before its length."""
    with (
        urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S) as answer,  # noqa: S310 - the URLs are the constants above
        path.open("wb") as file,
    ):
        shutil.copyfileobj(answer, file)
        if answer.length:  # is what is missing; reading by parts does not tell of it
            raise IncompleteRead(b"", answer.length)


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
