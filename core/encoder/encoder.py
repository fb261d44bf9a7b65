"""The encoder: an audio tower and a text tower that meet in one space, and how they are fused.

    windows ──encode_audio──> audio vector ──┐
                                         ├──fuse──> item  <── cosine ──>  query vector
    metadata ─────text tower─────────────────┘                    encode_text <── query

Late fusion (arXiv 2406.15897): the item is the sum of the projected audio vector and the projected
metadata vector, not normalised before the sum; the text tower is shared by queries and metadata.
Mid fusion lets both meet earlier (``fusion.py``); ``audio`` and ``metadata`` use one of them.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from audiofuse.core.audio.recording import Samples
from audiofuse.core.encoder.accumulator import WindowEmbedding, pad_frames
from audiofuse.core.encoder.frontend import HOP_LENGTH, MEL_BANDS, MelFrontEnd
from audiofuse.core.encoder.fusion import (
    AudioEmbedding,
    FramePooler,
    MidFusion,
    MidShape,
    TextTokens,
)
from audiofuse.core.encoder.mobilenet import AUDIOSET_CLASSES, Classifier, MobileNet
from audiofuse.core.encoder.processing import AudioProcessor, Preprocessing
from audiofuse.core.encoder.text import TextConfig, TextTower, character_tokenizer, without_pooler
from audiofuse.core.query import normalise

WINDOWS_PER_BATCH = 8  # 80 s of audio; bounds memory, and is what CPUs are fastest with


class AudioConfig(BaseModel):
    """Shape of the audio tower, and the head that brings its vector into the shared space.

    ``head`` is a linear projection, or an embedding for each AudioSet class (``ClassHead``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    width: float = Field(ge=0.1, le=4.0)
    head: Literal["linear", "classes"] = "linear"
    classifier: Classifier = "mlp"
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)
    mel_bands: int = Field(default=MEL_BANDS, ge=40, le=256)
    hop_samples: int = Field(default=HOP_LENGTH, ge=160, le=800)


class EncoderConfig(BaseModel):
    """Everything needed to rebuild an encoder around its weights.

    ``metadata`` is a text tower of its own for metadata; without it the queries' tower reads both,
    which the paper finds better. ``absent`` says what late fusion adds for an item without
    metadata: nothing, so that it is its ``audio`` alone, or the vector of the ``empty`` text, as
    the authors do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    fusion: Literal["late", "mid", "audio", "metadata"] = "late"
    absent: Literal["audio", "empty"] = "audio"
    dim: int = Field(default=1024, gt=0)
    audio: AudioConfig
    text: TextConfig
    metadata: TextConfig | None = None
    mid: MidShape = MidShape()
    preprocessing: Preprocessing = Preprocessing()


# The smallest encoder that goes through every line of the real one, for tests. No two of its widths
# are equal, as in real ones, so that whatever mistakes one for another fails.
TINY = EncoderConfig(
    dim=16,
    audio=AudioConfig(width=0.1),
    text=TextConfig(
        bert={
            "model_type": "bert",
            "vocab_size": 128,
            "hidden_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 20,
        }
    ),
    mid=MidShape(layers=1, width=8, heads=2, feedforward=28),
)


@dataclass(frozen=True)
class Fused:
    """Item vectors of unit length, ``(items, dim)``, and the lengths they had, ``(items,)``."""

    vectors: Tensor
    norms: Tensor


class ClassHead(nn.Module):
    """Add up one embedding for each AudioSet class, weighed by the class's probability.

    The square root lifts the many faint classes against the one loud one.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embeddings = nn.Linear(AUDIOSET_CLASSES, dim, bias=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Map class logits ``(items, 527)`` to ``(items, dim)``."""
        return self.embeddings(torch.sigmoid(logits).sqrt())  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Both towers and their fusion.

    ``encode_audio``, ``encode_text`` and ``fuse`` run without gradients, ``forward`` with them.
    """

    def __init__(
        self, config: EncoderConfig, text: TextTower, metadata: TextTower | None = None
    ) -> None:
        """Build the encoder around its text towers; audio weights are random until loaded."""
        super().__init__()
        self.config = config
        self.audio_processor = AudioProcessor(config.preprocessing)
        audio = config.audio
        self.front_end: nn.Module = MelFrontEnd(audio.mel_bands, audio.hop_samples)
        self.audio_tower = MobileNet(audio.width, audio.classifier, audio.strides)
        self.text_tower = text
        self.separate_metadata_tower = metadata
        if config.fusion == "mid":
            channels, hidden = self.audio_tower.channels, self._metadata_tower.hidden
            self.mid_fusion = MidFusion(channels, hidden, config.dim, config.mid)
        elif config.fusion != "metadata":
            self.audio_head: nn.Module = (
                ClassHead(config.dim)
                if audio.head == "classes"
                else nn.Linear(self.audio_tower.channels, config.dim)
            )
        self._freeze_unused()
        self.eval()

    def _freeze_unused(self) -> None:
        """Leave out of training what no item vector depends on."""
        if self.config.fusion == "metadata":
            self.audio_tower.requires_grad_(False)  # noqa: FBT003
        elif self.config.fusion == "mid" or self.config.audio.head == "linear":
            self.audio_tower.classifier.requires_grad_(False)  # noqa: FBT003

    @classmethod
    def build(
        cls,
        config: EncoderConfig,
        tokenizer: PreTrainedTokenizerBase,
        metadata_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> Self:
        """Build from the configuration alone; all weights are random."""
        text = _text_tower(config.text, config.dim, tokenizer)
        metadata = None
        if config.metadata is not None:
            # Mid fusion takes its tokens, so that it needs no projection.
            unprojected = {"head": "none"} if config.fusion == "mid" else {}
            shape = config.metadata.model_copy(update=unprojected)
            metadata = _text_tower(shape, config.dim, metadata_tokenizer or tokenizer)
        return cls(config, text, metadata)

    @classmethod
    def random(cls, config: EncoderConfig, seed: int) -> Self:
        """Build with reproducible random weights: the real code path, small enough for tests."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls.build(config, character_tokenizer())

    @property
    def dim(self) -> int:
        """Width of the shared space: of item and query vectors."""
        return self.config.dim

    @property
    def audio_dim(self) -> int:
        """Width of the audio vector, the pooled output of the audio tower."""
        return self.audio_tower.channels

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.audio_tower.device

    @property
    def uses_audio(self) -> bool:
        """Whether an item depends on its sound at all."""
        return self.config.fusion != "metadata"

    @property
    def places_metadata(self) -> bool:
        """Whether metadata alone has a vector in the shared space.

        Mid fusion's separate tower has none: only its tokens are used, and no head is trained.
        """
        return self.config.fusion != "mid" or self.separate_metadata_tower is None

    @property
    def fuses_stored_audio(self) -> bool:
        """Whether the stored audio vector suffices to fuse anew; mid fusion needs the frames."""
        return self.config.fusion != "mid"

    @property
    def _metadata_tower(self) -> TextTower:
        return self.separate_metadata_tower or self.text_tower

    @torch.inference_mode()
    def encode_audio(self, windows: Iterable[Samples]) -> AudioEmbedding:
        """Embed one clip, given as windows of at most 10 s: a batch of one.

        Its vector ``pooled`` is the mean over all time steps of the tower's frame sequence,
        padding left out. Memory is bounded by ``WINDOWS_PER_BATCH`` windows, however long the clip.
        """
        return self._encode_audio(((0, window) for window in windows), 1, WINDOWS_PER_BATCH)

    @torch.inference_mode()
    def encode_windows(self, windows: Sequence[Samples]) -> list[WindowEmbedding]:
        """Embed windows that ``audio_processor`` pads alike, of whichever clips, as one batch."""
        frames, valid = self._frames(windows)
        totals = (frames * valid.unsqueeze(-1)).sum(1).cpu()
        steps = valid.sum(1).tolist()
        if self.config.fusion != "mid":
            return list(map(WindowEmbedding, totals, steps))
        own = [sequence[:count].cpu() for sequence, count in zip(frames, steps, strict=True)]
        return list(map(WindowEmbedding, totals, steps, own))

    def _encode_clips(self, clips: Sequence[Sequence[Samples]]) -> AudioEmbedding:
        """Embed clips at once, windows of one padded length in one batch, of whichever clips."""
        windows = ((row, window) for row, clip in enumerate(clips) for window in clip)
        # The last window of a clip is its shortest, so that each clip stays in order.
        padded_length = self.audio_processor.padded_length
        longest_first = sorted(windows, key=lambda each: -padded_length(each[1]))
        # A CPU is fastest on what fits its caches, a GPU on as much as there is.
        at_once = WINDOWS_PER_BATCH if self.device.type == "cpu" else max(1, len(longest_first))
        return self._encode_audio(longest_first, len(clips), at_once)

    def _encode_audio(
        self, windows: Iterable[tuple[int, Samples]], clips: int, at_once: int
    ) -> AudioEmbedding:
        """Embed windows, each with the number of its clip, ``at_once`` of one length at a time."""
        total = torch.zeros(clips, self.audio_dim, device=self.device)
        steps = torch.zeros(clips, device=self.device)
        poolers = [FramePooler(self.audio_dim, self.device) for _ in range(clips)]
        padded_length = self.audio_processor.padded_length
        by_length = itertools.groupby(windows, key=lambda each: padded_length(each[1]))
        for _, same_length in by_length:
            while batch := list(itertools.islice(same_length, at_once)):
                frames, valid = self._frames([window for _, window in batch])
                rows = torch.tensor([row for row, _ in batch], device=self.device)
                total = total.index_add(0, rows, (frames * valid.unsqueeze(-1)).sum(1))
                steps = steps.index_add(0, rows, valid.sum(1).float())
                if self.config.fusion == "mid":
                    for (row, _), sequence, there in zip(batch, frames, valid, strict=True):
                        poolers[row].add(sequence[there])
        if not steps.all():
            msg = "a clip of no windows has no audio vector"
            raise ValueError(msg)
        pooled = total / steps.unsqueeze(1)
        if self.config.fusion != "mid":
            return AudioEmbedding(pooled)
        return AudioEmbedding(pooled, *pad_frames([pooler.frames() for pooler in poolers]))

    def _frames(self, windows: Sequence[Samples]) -> tuple[Tensor, Tensor]:
        """Return frame sequences ``(windows, steps, channels)`` and which steps are not padding."""
        waveforms, heard = self.audio_processor(windows)
        batch = torch.from_numpy(waveforms)
        with torch.autocast(self.device.type, enabled=False):  # the log needs float32
            mel = self.front_end(batch.to(self.device))
        frames = self.audio_tower.frames(mel).float()
        steps = frames.shape[1]
        lengths = torch.from_numpy(-(-heard.astype(np.int64) * steps // waveforms.shape[1]))
        return frames, (torch.arange(steps) < lengths[:, None]).to(self.device)

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embed queries in the shared space: ``(len(texts), dim)``, not normalised."""
        return self.text_tower(texts)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def encode_metadata(self, texts: Sequence[str]) -> Tensor:
        """Embed metadata in the shared space: ``(len(texts), dim)``, not normalised."""
        return self._metadata_tower(texts)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def fuse(self, audio: AudioEmbedding, metadata: Sequence[str]) -> Fused:
        """Fuse sounds with one metadata text each, "" for none.

        An item that has nothing of what this encoder uses, audio or metadata, has a NaN vector.
        """
        items = self._items(audio, metadata)
        norms = items.norm(dim=1)
        return Fused(items / norms.unsqueeze(1), norms)

    def forward(self, clips: Sequence[Sequence[Samples]], metadata: Sequence[str]) -> Tensor:
        """Encode clips, each in windows, with their metadata: ``(items, dim)``, with gradients.

        The audio tower runs only where items depend on it.
        """
        audio = self._encode_clips(clips) if self.uses_audio else self.no_audio(len(clips))
        return self._items(audio, metadata)

    def no_audio(self, items: int) -> AudioEmbedding:
        """Return embeddings of nothing, for encoders that use no audio."""
        return AudioEmbedding(torch.zeros(items, self.audio_dim, device=self.device))

    def tag(self, clips: Sequence[Sequence[Samples]]) -> Tensor:
        """Return the audio tower's class logits ``(clips, 527)``, with gradients."""
        return self.audio_tower.classify(self._encode_clips(clips).pooled)

    def _items(self, audio: AudioEmbedding, metadata: Sequence[str]) -> Tensor:
        if self.config.fusion == "mid":
            return self.mid_fusion(audio, self._encode_metadata_tokens(metadata))  # type: ignore[no-any-return]
        items = self._project_audio(audio.pooled)
        if self.config.fusion == "audio":
            return items
        all_rows = self.config.absent == "empty"
        rows = [row for row, text in enumerate(metadata) if all_rows or normalise(text)]
        if not rows:
            return items
        words = self._metadata_tower([metadata[row] for row in rows])
        # Under autocast the two may come in different precisions; the sum takes the higher.
        precision = torch.promote_types(items.dtype, words.dtype)
        at = torch.tensor(rows, device=items.device)
        return items.to(precision).index_add(0, at, words.to(precision))

    def _encode_metadata_tokens(self, metadata: Sequence[str]) -> TextTokens:
        tokens, valid = self._metadata_tower.encode_tokens(metadata)
        present = torch.tensor([bool(normalise(text)) for text in metadata], device=tokens.device)
        return TextTokens(tokens, valid, present)

    @torch.inference_mode()
    def project_audio(self, pooled: Tensor) -> Tensor | None:
        """Return what audio vectors ``(items, audio_dim)`` add to their items: ``(items, dim)``.

        ``None`` in mid fusion, where an item is no sum.
        """
        return None if self.config.fusion == "mid" else self._project_audio(pooled)

    def _project_audio(self, pooled: Tensor) -> Tensor:
        if not self.uses_audio:
            return torch.zeros(len(pooled), self.dim, device=pooled.device)
        by_class = self.config.audio.head == "classes"
        inputs = self.audio_tower.classify(pooled) if by_class else pooled
        return self.audio_head(inputs)  # type: ignore[no-any-return]


def _text_tower(shape: TextConfig, dim: int, tokenizer: PreTrainedTokenizerBase) -> TextTower:
    bert_config = AutoConfig.for_model(**shape.bert)
    bert = AutoModel.from_config(bert_config, **without_pooler(bert_config.model_type))  # type: ignore[no-untyped-call]
    return TextTower(bert, tokenizer, shape, dim)
