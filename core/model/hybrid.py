"""The model: an audio tower and a text tower that meet in one space, and how they are fused.

    waveforms ──encode_audio──> frames ──pool──┐
                                               ├──fuse──> item  <── cosine ──>  query vector
    metadata's tokens ─────────────────────────┘                   encode_text <── query's tokens

Late fusion (arXiv 2406.15897): the item is the sum of the projected audio vector and the projected
metadata vector, not normalised before the sum; the text tower is shared by queries and metadata.
Mid fusion lets both meet earlier (``fusion.py``); ``audio`` and ``metadata`` use one of them.

Tensors only, with gradients: it compiles, exports and can be wrapped. What sounds and words become
before they are tensors is ``core/encoder/processing.py``.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from audiofuse.core.model.config import AudioConfig, EncoderConfig
from audiofuse.core.model.frontend import MelFrontEnd
from audiofuse.core.model.fusion import AudioTensors, MidFusion, TextTokens, averaged_down
from audiofuse.core.model.mobilenet import AUDIOSET_CLASSES, MobileNet
from audiofuse.core.model.text import TextTower


class Windows(NamedTuple):
    """Windows of one padded length, of whichever clips.

    ``waveforms`` float32 ``(windows, samples)``; ``lengths`` int32 ``(windows,)``, how many of the
    samples are heard; ``rows`` int64 ``(windows,)``, the number of each window's clip in its batch.
    A clip's windows come in order.
    """

    waveforms: Tensor
    lengths: Tensor
    rows: Tensor


class Words(NamedTuple):
    """Texts as tokens: ``ids`` and ``mask`` int64 ``(texts, tokens)``, and boolean ``(texts,)``.

    ``present`` tells texts that hold words from those that hold none.
    """

    ids: Tensor
    mask: Tensor
    present: Tensor


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


class HybridEncoder(nn.Module):
    """Both towers and their fusion."""

    def __init__(
        self, config: EncoderConfig, text: TextTower, metadata: TextTower | None = None
    ) -> None:
        """Build the model around its text towers; audio weights are random until loaded."""
        super().__init__()
        self.config = config
        audio = config.audio
        self.front_end: nn.Module = MelFrontEnd(audio.mel_bands, audio.hop_samples)
        self.audio_tower = MobileNet(audio.width, audio.classifier, audio.strides)
        self.text_tower = text
        self.separate_metadata_tower = metadata
        if config.fusion == "mid":
            channels, hidden = self.audio_tower.channels, self.metadata_tower.hidden
            self.mid_fusion = MidFusion(channels, hidden, config.dim, config.mid)
        elif config.fusion != "metadata":
            self.audio_head: nn.Module = _audio_head(audio, self.audio_tower.channels, config.dim)
        self._freeze_unused()
        self.eval()

    @classmethod
    def build(cls, config: EncoderConfig) -> Self:
        """Build from the configuration alone; all weights are random."""
        text = TextTower.build(config.text, config.dim)
        metadata = None
        if config.metadata is not None:
            # Mid fusion takes its tokens, so that it needs no projection.
            unprojected = {"head": "none"} if config.fusion == "mid" else {}
            shape = config.metadata.model_copy(update=unprojected)
            metadata = TextTower.build(shape, config.dim)
        return cls(config, text, metadata)

    def _freeze_unused(self) -> None:
        """Leave out of training what no item vector depends on."""
        if not self.config.uses_audio:
            self.audio_tower.requires_grad_(False)  # noqa: FBT003
        elif self.config.fusion == "mid" or self.config.audio.head == "linear":
            self.audio_tower.classifier.requires_grad_(False)  # noqa: FBT003

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.audio_tower.device

    @property
    def metadata_tower(self) -> TextTower:
        """The text tower that reads metadata."""
        return self.separate_metadata_tower or self.text_tower

    def encode_audio(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Embed windows: frame sequences ``(windows, steps, channels)``, and which steps are heard.

        ``waveforms``: float32 ``(windows, samples)`` at 32 kHz; of each, its number in ``lengths``
        ``(windows,)`` is heard, and a step that holds any of that counts.
        """
        with torch.autocast(waveforms.device.type, enabled=False):  # the log needs float32
            mel = self.front_end(waveforms)
        frames = self.audio_tower.frames(mel).float()
        steps, samples = frames.shape[1], waveforms.shape[1]
        heard = (lengths.long() * steps + samples - 1) // samples
        return frames, torch.arange(steps, device=frames.device) < heard[:, None]

    def encode_text(self, words: Words) -> Tensor:
        """Embed queries in the shared space: ``(texts, dim)``, not normalised."""
        return self.text_tower(words.ids, words.mask)  # type: ignore[no-any-return]

    def encode_metadata(self, words: Words) -> Tensor:
        """Embed metadata in the shared space: ``(texts, dim)``, not normalised."""
        return self.metadata_tower(words.ids, words.mask)  # type: ignore[no-any-return]

    def pool(self, windows: Sequence[Windows], clips: int) -> AudioTensors:
        """Embed clips: the mean over all heard steps of their windows; for mid fusion the frames.

        Encoders that use no audio run no audio tower: zeros.
        """
        total = torch.zeros(clips, self.audio_tower.channels, device=self.device)
        if not self.config.uses_audio:
            return AudioTensors(total)
        steps = torch.zeros(clips, device=self.device)
        sequences: list[list[Tensor]] = [[] for _ in range(clips)]
        for batch in windows:
            frames, heard = self.encode_audio(batch.waveforms, batch.lengths)
            total = total.index_add(0, batch.rows, (frames * heard.unsqueeze(-1)).sum(1))
            steps = steps.index_add(0, batch.rows, heard.sum(1).float())
            if self.config.fusion == "mid":
                for row, sequence, there in zip(batch.rows.tolist(), frames, heard, strict=True):
                    sequences[row].append(sequence[there])
        pooled = total / steps.unsqueeze(1)
        if self.config.fusion != "mid":
            return AudioTensors(pooled)
        averaged = [averaged_down(torch.cat(each)) for each in sequences]
        valid = [torch.ones(len(each), dtype=torch.bool, device=self.device) for each in averaged]
        return AudioTensors(
            pooled, pad_sequence(averaged, batch_first=True), pad_sequence(valid, batch_first=True)
        )

    def fuse(self, audio: AudioTensors, metadata: Words) -> Tensor:
        """Fuse sounds with one metadata text each: ``(items, dim)``, not normalised."""
        if self.config.fusion == "mid":
            tower = self.metadata_tower
            tokens = tower.encode_tokens(metadata.ids, metadata.mask)
            text = TextTokens(tokens, metadata.mask.bool(), metadata.present)
            return self.mid_fusion(audio, text)  # type: ignore[no-any-return]
        items = self.project_audio(audio.pooled)
        if self.config.fusion == "audio":
            return items
        words = self.encode_metadata(metadata)
        if self.config.absent == "audio":
            # Not by a product: whatever the tower makes of no words, nothing of it is added.
            words = torch.where(metadata.present[:, None], words, torch.zeros_like(words))
        return items + words

    def forward(self, windows: Sequence[Windows], metadata: Words) -> Tensor:
        """Encode clips, each in windows, with their metadata: ``(items, dim)``."""
        return self.fuse(self.pool(windows, len(metadata.ids)), metadata)

    def project_audio(self, pooled: Tensor) -> Tensor:
        """Return what audio vectors ``(items, channels)`` add to their items: ``(items, dim)``.

        Not in mid fusion, where an item is no sum.
        """
        if not self.config.uses_audio:
            return torch.zeros(len(pooled), self.config.dim, device=pooled.device)
        by_class = self.config.audio.head == "classes"
        inputs = self.audio_tower.classify(pooled) if by_class else pooled
        return self.audio_head(inputs)  # type: ignore[no-any-return]

    def tag(self, windows: Sequence[Windows], clips: int) -> Tensor:
        """Return the audio tower's class logits ``(clips, 527)``."""
        return self.audio_tower.classify(self.pool(windows, clips).pooled)


def _audio_head(audio: AudioConfig, channels: int, dim: int) -> nn.Module:
    return ClassHead(dim) if audio.head == "classes" else nn.Linear(channels, dim)
