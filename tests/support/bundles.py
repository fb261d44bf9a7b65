"""Bundles for tests: written once for an encoder, and copied wherever else one is wanted."""

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiofuse.core.encoder.encoder import Encoder


def saved_bundle(encoder: "Encoder", folder: Path, name: str, card: str) -> Path:
    """Do what ``save_bundle`` does, which takes a second, for an encoder that does not change."""
    written = _written(encoder, name, card)
    return Path(shutil.copytree(written, folder / written.name, dirs_exist_ok=True))


@cache
def _written(encoder: "Encoder", name: str, card: str) -> Path:
    from audiofuse.core.bundles.bundle import save_bundle

    kept = tempfile.TemporaryDirectory(prefix="audiofuse-bundles-")
    _kept.append(kept)
    return save_bundle(encoder, Path(kept.name), name, card)


_kept: list["tempfile.TemporaryDirectory[str]"] = []  # until this process ends
