"""What a training starts from: a bundle, or the paper's encoder around two pretrained towers."""

from dataclasses import dataclass
from pathlib import Path

import torch

from audiofuse.core.bundles.bundle import load_bundle
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.pretrained import find_checkpoint
from audiofuse.core.encoder.processing import load_tokenizer
from audiofuse.core.encoder.starting import default_encoder
from audiofuse.core.model.config import AudioConfig, EncoderConfig, Fusion, TextConfig
from audiofuse.core.model.hybrid import HybridEncoder
from audiofuse.core.model.text import load_bert
from audiofuse.core.settings import Settings

TEXT_DROPOUT = 0.2  # authors' code default, in BERT and its attention


@dataclass(frozen=True)
class PaperShape:
    """What the paper varies.

    ``audio`` is a released EfficientAT name, a path or a URL; ``text`` a Hugging Face id or a
    folder; ``separate`` gives metadata a text tower of its own.
    """

    audio: str
    text: str | Path
    fusion: Fusion = "late"
    separate: bool = False


def load_start(bundle: Path | None) -> Encoder:
    """Return the bundle's encoder, or without one the default encoder that the product ships."""
    return load_bundle(bundle) if bundle else default_encoder()


def paper_encoder(settings: Settings, paper: PaperShape, seed: int) -> Encoder:
    """Build the paper's encoder: pretrained towers, [CLS], random linear heads to 1024.

    Items without metadata are treated as the authors do: the empty text is read (arXiv 2406.15897).
    """
    folder = settings.pretrained or settings.home / "pretrained"
    shape, checkpoint = find_checkpoint(paper.audio, folder)
    bert, tokenizer = load_bert(paper.text), load_tokenizer(paper.text)
    described = bert.config.to_diff_dict()
    del described["transformers_version"]  # would give each of its releases its own version
    if "hidden_dropout_prob" in described:
        described |= dict.fromkeys(
            ("hidden_dropout_prob", "attention_probs_dropout_prob"), TEXT_DROPOUT
        )
    tower = TextConfig(bert=described)
    config = EncoderConfig(
        fusion=paper.fusion,
        absent="empty",
        audio=AudioConfig.model_validate(shape.model_dump() | {"head": "linear"}),
        text=tower,
        metadata=tower if paper.separate else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HybridEncoder.build(config)
    model.audio_tower.load_state_dict(checkpoint)
    for each in (model.text_tower, model.separate_metadata_tower):
        if each is not None:
            each.bert.load_state_dict(bert.state_dict())
    return Encoder.around(model, tokenizer)
