"""The bundle: one immutable encoder version as a folder of JSON, safetensors and tokenizer files.

config.json         everything needed to rebuild the model
model.safetensors   its weights
tokenizer/          the text tower's tokenizer
metadata_tokenizer/ that of the metadata's own tower, if it has one
*.onnx              how a CPU runs it without PyTorch, by these weights: core/encoder/graphs.py
query/              the text tower once more, as fastembed loads it: core/encoder/query_tower.py
metrics.json        what was measured on it, and how
README.md           the model card
manifest.json       size and sha256 of each file; the version is the name plus this file's hash
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from audiofuse.core.bundles.manifest import (
    CARD,
    CONFIG,
    FORMAT,
    MANIFEST,
    METADATA_TOKENIZER,
    METRICS,
    QUERY,
    TOKENIZER,
    WEIGHTS,
    Manifest,
    audio_fingerprint,
    bundle_version,
    file_entries,
    read_file,
    verify_bundle,
)
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.graphs import export_graphs
from audiofuse.core.encoder.processing import load_tokenizer
from audiofuse.core.encoder.query_tower import export_query_tower
from audiofuse.core.errors import BundleError, ConfigurationError
from audiofuse.core.model.config import EncoderConfig
from audiofuse.core.model.hybrid import HybridEncoder

# What a bundle raises that is whole, but holds no encoder.
UNREADABLE = (
    ValidationError, SafetensorError, RuntimeError, ValueError, OSError, ConfigurationError,
)  # fmt: skip
TOKENIZER_ORIGIN = frozenset({"is_local", "local_files_only", "name_or_path"})


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
        manifest = Manifest(format=FORMAT, name=name, files=file_entries(folder))
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
        target = parent / bundle_version(folder)
        if not target.exists():
            folder.rename(target)
    return target


def _write_files(encoder: Encoder, folder: Path, card: str, metrics: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(encoder.config.model_dump_json(indent=2) + "\n")
    model = encoder.model
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / WEIGHTS)
    _save_tokenizer(encoder.text_processor.tokenizer, folder / TOKENIZER)
    if encoder.config.metadata:
        _save_tokenizer(encoder.metadata_processor.tokenizer, folder / METADATA_TOKENIZER)
    export_graphs(model, folder / WEIGHTS)
    export_query_tower(model.text_tower, encoder.text_processor, folder / QUERY)
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


def load_bundle(folder: Path) -> Encoder:
    """Verify a bundle against its manifest, then rebuild its encoder on the CPU.

    Raises ``BundleError`` before anything is built when a file is missing, changed or foreign.
    """
    verify_bundle(folder)
    try:
        config = EncoderConfig.model_validate_json(read_file(folder / CONFIG))
        model = HybridEncoder.build(config)
        model.load_state_dict(load_file(folder / WEIGHTS))
        return Encoder.around(
            model,
            load_tokenizer(folder / TOKENIZER),
            load_tokenizer(folder / METADATA_TOKENIZER) if config.metadata else None,
            audio_fingerprint(folder, config),
        )
    except UNREADABLE as error:
        raise BundleError(f"the bundle {folder} does not describe an encoder: {error}") from error
