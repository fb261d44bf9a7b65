"""Encoders of the sizes that people run, with random weights: speed does not depend on them."""

from pathlib import Path

from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.model.config import TINY, AudioConfig, EncoderConfig, TextConfig

VOCABULARY = 30522


def _bert(hidden: int, layers: int) -> TextConfig:
    shape = {
        "model_type": "bert",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "intermediate_size": 4 * hidden,
    }
    return TextConfig(bert=shape, pooling="mean", max_tokens=128)


TEXTS = {"tiny": TINY.text, "minilm": _bert(384, 6), "bert-base": _bert(768, 12)}


def name_of(width: float) -> str:
    """Return what EfficientAT calls a width: 0.4 is mn04."""
    return f"mn{round(10 * width):02}"


def build(width: float, text: str, seed: int = 0) -> Encoder:
    """Return an encoder of an EfficientAT ``width`` and one of the ``TEXTS``."""
    config = EncoderConfig(dim=1024, audio=AudioConfig(width=width), text=TEXTS[text])
    return Encoder.random(config, seed)


def bundle(width: float, text: str, root: Path, seed: int = 0) -> Path:
    """Save such an encoder; return its bundle's folder."""
    return save_bundle(build(width, text, seed), root, f"{name_of(width)}-{text}", "")
