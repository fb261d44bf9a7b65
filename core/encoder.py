"""The encoder: an audio tower and a text tower that meet in one space, and how they are fused.

    windows ──hear──> audio vector ──┐
                                     ├──fuse──> item vector   <── cosine ──>   query vector
    metadata text ────read───────────┘                                       read <── query

Late fusion (arXiv 2406.15897): the item is the sum of the projected audio vector and the projected
metadata vector, not normalised before the sum; the text tower is shared by queries and metadata.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from core.audio import SAMPLE_RATE, Samples
from core.frontend import MelFrontEnd
from core.mobilenet import AUDIOSET_CLASSES, MobileNet
from core.query import normalise
from core.text import Pooling, TextTower, character_tokenizer

QUANTUM_SAMPLES = SAMPLE_RATE  # windows are padded to whole seconds, so that few shapes occur
WINDOWS_PER_BATCH = 8  # bounds memory: 80 s of audio at a time


class AudioConfig(BaseModel):
    """Shape of the audio tower and of the head that brings its vector into the shared space."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    width: float = Field(ge=0.1, le=4.0)
    head: Literal["linear", "classes"] = "linear"


class TextConfig(BaseModel):
    """Shape of the text tower; ``bert`` is its Hugging Face configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    bert: dict[str, Any]
    pooling: Pooling = "cls"
    max_tokens: int = Field(default=32, ge=3, le=512)
    project: bool = True


class EncoderConfig(BaseModel):
    """Everything needed to rebuild an encoder around its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    fusion: Literal["late"] = "late"
    dim: int = Field(default=1024, gt=0)
    audio: AudioConfig
    text: TextConfig


# The smallest encoder that goes through every line of the real one, for tests.
TINY = EncoderConfig(
    dim=16,
    audio=AudioConfig(width=0.1),
    text=TextConfig(
        bert={
            "model_type": "bert",
            "vocab_size": 128,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
    ),
)


@dataclass(frozen=True)
class Fused:
    """Item vectors of unit length, ``(items, dim)``, and the lengths they had, ``(items,)``."""

    vectors: Tensor
    norms: Tensor


class ClassHead(nn.Module):
    """Let the AudioSet class probabilities speak through one embedding for each class.

    The square root lifts the many faint classes against the one loud one.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embeddings = nn.Linear(AUDIOSET_CLASSES, dim, bias=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Map class logits ``(items, 527)`` to ``(items, dim)``."""
        return self.embeddings(torch.sigmoid(logits).sqrt())  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Both towers and their fusion. Methods that encode run without gradients."""

    def __init__(self, config: EncoderConfig, text: TextTower) -> None:
        """Build the encoder around a text tower; audio weights are random until loaded."""
        super().__init__()
        self.config = config
        self.front_end = MelFrontEnd()
        self.audio_tower = MobileNet(config.audio.width)
        self.audio_head: nn.Module = (
            ClassHead(config.dim)
            if config.audio.head == "classes"
            else nn.Linear(self.audio_tower.channels, config.dim)
        )
        self.text_tower = text
        self.eval()

    @classmethod
    def build(cls, config: EncoderConfig, tokenizer: PreTrainedTokenizerBase) -> Self:
        """Build from the configuration alone; all weights are random."""
        text = config.text
        shape = AutoConfig.for_model(**text.bert)
        bert = AutoModel.from_config(shape, add_pooling_layer=False)  # type: ignore[no-untyped-call]
        dim = config.dim if text.project else None
        return cls(config, TextTower(bert, tokenizer, text.pooling, text.max_tokens, dim))

    @property
    def dim(self) -> int:
        """Width of the shared space: of item and query vectors."""
        return self.config.dim

    @property
    def audio_dim(self) -> int:
        """Width of the audio vector that ``hear`` returns."""
        return self.audio_tower.channels

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.front_end.window.device

    @torch.inference_mode()
    def hear(self, windows: Iterable[Samples]) -> Tensor:
        """Pool one clip, given as windows of at most 10 s, to its audio vector ``(audio_dim,)``.

        The vector is the mean over all time steps of the tower's frame sequence, padding left out.
        Memory is bounded by ``WINDOWS_PER_BATCH`` windows, however long the clip.
        """
        total = torch.zeros(self.audio_dim, device=self.device)
        steps = 0
        for _, same_length in itertools.groupby(windows, key=_padded_length):
            while batch := list(itertools.islice(same_length, WINDOWS_PER_BATCH)):
                frames, valid = self._frames(batch)
                total += (frames * valid.unsqueeze(-1)).sum(dim=(0, 1))
                steps += int(valid.sum())
        if not steps:
            msg = "a clip of no windows has no audio vector"
            raise ValueError(msg)
        return total / steps

    def _frames(self, windows: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """Return frame sequences ``(windows, steps, channels)`` and which steps are not padding."""
        length = _padded_length(windows[0])
        batch = torch.zeros(len(windows), length)
        for row, window in zip(batch, windows, strict=True):
            row[: window.size] = torch.from_numpy(window)
        frames = self.audio_tower.frames(self.front_end(batch.to(self.device)))
        steps = frames.shape[1]
        lengths = torch.tensor([-(-window.size * steps // length) for window in windows])
        return frames, (torch.arange(steps) < lengths[:, None]).to(self.device)

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Tensor:
        """Embed texts in the shared space: ``(len(texts), dim)``, not normalised."""
        return self.text_tower(texts)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def project_audio(self, audio: Tensor) -> Tensor:
        """Bring audio vectors ``(items, audio_dim)`` into the shared space: ``(items, dim)``."""
        by_class = self.config.audio.head == "classes"
        heard = self.audio_tower.classify(audio) if by_class else audio
        return self.audio_head(heard)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def fuse(self, audio: Tensor, metadata: Sequence[str]) -> Fused:
        """Fuse audio vectors ``(items, audio_dim)`` with one metadata text each, "" for none.

        An item without metadata is its audio alone: a vector for the empty text, which the
        authors add, draws all such items to one place (figures in DECISIONS.md).
        """
        items = self.project_audio(audio.to(self.device))
        described = [row for row, text in enumerate(metadata) if normalise(text)]
        if described:
            items[described] += self.read([metadata[row] for row in described])
        norms = items.norm(dim=1)
        return Fused(items / norms.unsqueeze(1), norms)

    @classmethod
    def random(cls, config: EncoderConfig, seed: int) -> Self:
        """Build with reproducible random weights: the real code path, small enough for tests."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls.build(config, character_tokenizer())


def _padded_length(window: Samples) -> int:
    return -(-window.size // QUANTUM_SAMPLES) * QUANTUM_SAMPLES
