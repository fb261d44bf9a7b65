"""The part of an encoder that learns on a CPU: what stands behind the towers.

    stored audio vector ──> classifier ──> audio head ──┐
                                                        ├──> item
    pooled metadata ──> text head ──────────────────────┘
    pooled question ──> text head ──> question

The towers stay as they are, so that what they make of sounds and words is computed once. Stored
audio vectors stay valid for the new version: a rollout hears no sound again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.processing import TextProcessor
from audiofuse.core.encoder.starting import pooled_texts
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.hybrid import HybridEncoder
from audiofuse.core.model.text import TextTower
from audiofuse.core.query import normalise
from audiofuse.trainer.improvement.archive import Sound

AT_ONCE = 64  # texts; more needs memory, fewer is slower
VIEWS = ("sound alone", "hybrid")  # items without their words, and as they are


@dataclass(frozen=True)
class Stored:
    """Sounds before the heads.

    ``audio`` is ``(sounds, channels)``; ``words`` ``(sounds, hidden)`` is their pooled metadata,
    ``present`` ``(sounds,)`` tells who has any, and ``nothing`` ``(1, hidden)`` is no words.
    """

    audio: Tensor
    words: Tensor
    present: Tensor
    nothing: Tensor

    def select(self, rows: Tensor) -> "Stored":
        """Return some of the sounds."""
        return Stored(self.audio[rows], self.words[rows], self.present[rows], self.nothing)


class Reader:
    """Pools texts by the towers as they are, each once."""

    def __init__(self, encoder: Encoder) -> None:
        """Read with an encoder's towers; ``ConfigurationError`` if it must hear sounds anew."""
        if not encoder.fuses_stored_audio:
            raise ConfigurationError(
                "mid fusion needs the frames of each sound, which no index has: train it by "
                "audiofuse-train fit"
            )
        self._encoder = encoder
        self._read: dict[str, Tensor] = {}

    def questions(self, texts: Sequence[str]) -> Tensor:
        """Return pooled questions: ``(texts, hidden)``."""
        # In an order of their own: others would pad others' batches, and give another version.
        unread = sorted(set(texts) - self._read.keys(), key=lambda text: (len(text), text))
        tower, processor = self._encoder.model.text_tower, self._encoder.text_processor
        self._read |= zip(unread, _pooled(tower, processor, unread), strict=True)
        known = [self._read[text] for text in texts]
        return torch.stack(known) if known else torch.zeros(0, tower.hidden)

    def sounds(self, sounds: Sequence[Sound]) -> Stored:
        """Return sounds before the heads."""
        texts = [sound.clip.metadata.text for sound in sounds]
        tower, processor = self._encoder.model.metadata_tower, self._encoder.metadata_processor
        return Stored(
            torch.stack([torch.from_numpy(sound.audio) for sound in sounds]),
            _pooled(tower, processor, texts),
            torch.tensor([bool(normalise(text)) for text in texts]),
            _pooled(tower, processor, [""]),
        )


@torch.no_grad()
def _pooled(tower: TextTower, processor: TextProcessor, texts: Sequence[str]) -> Tensor:
    if not texts:
        return torch.zeros(0, tower.hidden)
    starts = range(0, len(texts), AT_ONCE)
    return torch.cat(
        [pooled_texts(tower, processor, texts[at : at + AT_ONCE]) for at in starts]
    ).clone()


def heads(model: HybridEncoder) -> Iterator[nn.Parameter]:
    """Yield what learns: what stands behind the towers."""
    config = model.config
    modules: list[nn.Module] = [model.text_tower.project]
    if config.uses_audio:
        modules.append(model.audio_head)
        if config.audio.head == "classes":
            modules.append(model.audio_tower.classifier)
    if model.separate_metadata_tower is not None:
        modules.append(model.separate_metadata_tower.project)
    for module in modules:
        yield from module.parameters()


def questions(model: HybridEncoder, pooled: Tensor) -> Tensor:
    """Return questions' vectors, of unit length: ``(questions, dim)``."""
    return normalize(model.text_tower.project(pooled))


def items(model: HybridEncoder, sounds: Stored) -> tuple[Tensor, Tensor]:
    """Return items without and with their metadata, of unit length: twice ``(sounds, dim)``."""
    audio = model.project_audio(sounds.audio)
    if model.config.fusion == "audio":
        alone = normalize(audio)
        return alone, alone
    project = model.metadata_tower.project
    words = project(sounds.words)
    if model.config.absent == "audio":
        present = sounds.present[:, None]
        return normalize(audio), normalize(audio + torch.where(present, words, 0.0))
    return normalize(audio + project(sounds.nothing)), normalize(audio + words)


def set_to_mean(model: HybridEncoder, of: Sequence[HybridEncoder]) -> None:
    """Set the heads of ``model`` to the mean of others' heads, which began as the same ones.

    It is about as good as the mean of what they answer (model soups, arXiv 2203.05482).
    """
    with torch.no_grad():
        for own, *others in zip(heads(model), *map(heads, of), strict=True):
            own.copy_(torch.stack([each.detach() for each in others]).mean(0))


def set_between(
    model: HybridEncoder, start: HybridEncoder, end: HybridEncoder, share: float
) -> None:
    """Set the heads of ``model`` to ``share`` of the way from ``start`` to ``end``.

    Part of the way keeps most of what was known, and most of what was learned (WiSE-FT, arXiv
    2109.01903).
    """
    with torch.no_grad():
        for own, first, last in zip(heads(model), heads(start), heads(end), strict=True):
            own.copy_(torch.lerp(first, last, share))
