"""Loading a bundle to run it: by PyTorch on a GPU, by ONNX Runtime on a CPU.

cuda                            PyTorch
cpu, a bundle with graphs       ONNX Runtime; PyTorch and transformers are not even imported
cpu, a bundle of before them    PyTorch
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError
from safetensors import SafetensorError

from audiofuse.core.bundles.manifest import (
    CONFIG,
    METADATA_TOKENIZER,
    TOKENIZER,
    audio_fingerprint,
    bundle_version,
    read_file,
    verify_bundle,
)
from audiofuse.core.bundles.registry import locate
from audiofuse.core.cores import computing_threads, may_have_gpu
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.onnx_runtime import AUDIO_GRAPH, OnnxRuntime
from audiofuse.core.encoder.processing import SavedTextProcessor
from audiofuse.core.errors import BundleError, ConfigurationError
from audiofuse.core.model.config import EncoderConfig
from audiofuse.core.settings import Settings

if TYPE_CHECKING:
    from audiofuse.core.encoder.inference import Precision


def load_encoder(settings: Settings, spare_cpus: int = 0) -> tuple[Encoder, str]:
    """Load the bundle that the settings name; return it and its version.

    Raises ``ConfigurationError`` when no bundle is set, and what ``load_folder`` does.
    """
    if settings.encoder is None:
        raise ConfigurationError("no encoder is set: give AUDIOFUSE_ENCODER a bundle's folder")
    encoder = load_folder(settings, settings.encoder, spare_cpus)
    return encoder, bundle_version(settings.encoder)


def load_version(settings: Settings, version: str, spare_cpus: int = 0) -> Encoder:
    """Load one version; raises what ``locate`` and ``load_folder`` do."""
    return load_folder(settings, locate(settings, version), spare_cpus)


def load_folder(settings: Settings, folder: Path, spare_cpus: int = 0) -> Encoder:
    """Verify a bundle and load it on the device that the settings name, to run it only.

    It computes with all CPUs that this process may use, less ``spare_cpus``. Raises ``BundleError``
    for a bundle that is damaged, and ``ConfigurationError`` when CUDA or half precision is asked
    for and not usable: running slowly on the CPU instead would go unnoticed.
    """
    if device_of(settings) == "cuda":
        return _on_gpu(folder, settings.precision, spare_cpus)
    if settings.precision != "float32":
        raise ConfigurationError(
            f"AUDIOFUSE_PRECISION is {settings.precision}, which is for GPUs, and encoders run on "
            "the CPU here"
        )
    if (folder / AUDIO_GRAPH).exists():
        return _by_onnx_runtime(folder, computing_threads(spare_cpus))
    return _by_torch(folder, spare_cpus)


def device_of(settings: Settings) -> Literal["cpu", "cuda"]:
    """Return where encoders run; ``ConfigurationError`` if a GPU is wanted and there is none."""
    if not may_have_gpu(settings.device):
        return "cpu"
    import torch  # noqa: PLC0415 - takes seconds, where it is not needed

    if torch.cuda.is_available():
        return "cuda"
    if settings.device == "cuda":
        raise ConfigurationError("AUDIOFUSE_DEVICE is cuda, but PyTorch finds no usable GPU")
    return "cpu"


def _by_onnx_runtime(folder: Path, threads: int) -> Encoder:
    verify_bundle(folder)
    try:
        config = EncoderConfig.model_validate_json(read_file(folder / CONFIG))
        own = config.metadata
        return Encoder(
            config,
            OnnxRuntime(folder, config, threads),
            SavedTextProcessor(folder / TOKENIZER, config.text.max_tokens),
            SavedTextProcessor(
                folder / (METADATA_TOKENIZER if own else TOKENIZER),
                (own or config.text).max_tokens,
            ),
            audio_fingerprint(folder, config),
        )
    except (ValidationError, SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise BundleError(f"the bundle {folder} does not describe an encoder: {error}") from error


def _on_gpu(folder: Path, precision: "Precision", spare_cpus: int) -> Encoder:
    from audiofuse.core.encoder.inference import run_on_gpu  # noqa: PLC0415 - imports PyTorch

    encoder = _by_torch(folder, spare_cpus)
    run_on_gpu(encoder, "cuda", precision)
    return encoder


def _by_torch(folder: Path, spare_cpus: int) -> Encoder:
    from audiofuse.core.bundles.bundle import load_bundle  # noqa: PLC0415 - imports PyTorch
    from audiofuse.core.encoder.inference import prepare, use_cpus  # noqa: PLC0415 - likewise

    use_cpus(spare_cpus)
    return prepare(load_bundle(folder))
