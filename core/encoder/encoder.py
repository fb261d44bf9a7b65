"""The encoder: sounds and words in, vectors out; arrays only, whatever computes.

    windows ──> AudioProcessor ──┐
                                 ├──> runtime ──> window embeddings, text vectors, items
    texts ────> TextProcessor ───┘

Everybody encodes by one of three ways in: ``encode_audio``, ``encode_text`` (``encode_metadata``
reads with the metadata's tower) and ``fuse``. Training has the model itself.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.accumulator import AudioAccumulator
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, Fused, WindowEmbedding
from audiofuse.core.encoder.processing import (
    WINDOWS_PER_BATCH,
    AudioProcessor,
    TextProcessor,
    character_tokenizer,
)
from audiofuse.core.encoder.runtime import Runtime
from audiofuse.core.model.config import EncoderConfig
from audiofuse.core.model.relevance import Relevance

if TYPE_CHECKING:  # what computes is imported where an encoder is built, not where it is asked
    from transformers import PreTrainedTokenizerBase

    from audiofuse.core.model.hybrid import HybridEncoder


class Encoder:
    """Processors and a runtime, by the configuration of one bundle."""

    def __init__(
        self,
        config: EncoderConfig,
        runtime: Runtime,
        text: TextProcessor,
        metadata: TextProcessor,
        audio_fingerprint: str = "",
    ) -> None:
        """Encode by ``runtime`` what the processors of queries' and metadata's texts give.

        ``audio_fingerprint`` is of what makes audio vectors: encoders of equal ones hear the same.
        One that comes of no bundle has none.
        """
        self.config = config
        self.runtime = runtime
        self.audio_fingerprint = audio_fingerprint
        self.audio_processor = AudioProcessor(config.preprocessing)
        self.text_processor = text
        self.metadata_processor = metadata

    @classmethod
    def around(
        cls,
        model: "HybridEncoder",
        tokenizer: "PreTrainedTokenizerBase",
        metadata_tokenizer: "PreTrainedTokenizerBase | None" = None,
        audio_fingerprint: str = "",
    ) -> Self:
        """Return the encoder of a model, run by PyTorch."""
        from audiofuse.core.encoder.torch_runtime import TorchRuntime  # noqa: PLC0415

        config = model.config
        return cls(
            config,
            TorchRuntime(model),
            TextProcessor(tokenizer, config.text.max_tokens),
            TextProcessor(
                metadata_tokenizer or tokenizer, (config.metadata or config.text).max_tokens
            ),
            audio_fingerprint,
        )

    @classmethod
    def random(cls, config: EncoderConfig, seed: int) -> Self:
        """Build with reproducible random weights: the real code path, small enough for tests."""
        import torch  # noqa: PLC0415

        from audiofuse.core.model.hybrid import HybridEncoder  # noqa: PLC0415

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls.around(HybridEncoder.build(config), character_tokenizer())

    def with_relevance(self, relevance: Relevance | None) -> Self:
        """Return the encoder, by the same weights, with another calibration or with none."""
        other = copy.copy(self)
        other.config = self.config.model_copy(update={"relevance": relevance})
        return other

    @property
    def model(self) -> "HybridEncoder":
        """The modules behind it, for training and saving; ``TypeError`` if PyTorch runs none."""
        from audiofuse.core.encoder.torch_runtime import TorchRuntime  # noqa: PLC0415

        if not isinstance(self.runtime, TorchRuntime):
            msg = f"{self.runtime} has no PyTorch model"
            raise TypeError(msg)
        return self.runtime.model

    @property
    def dim(self) -> int:
        """Width of the shared space: of item and query vectors."""
        return self.config.dim

    @property
    def audio_dim(self) -> int:
        """Width of the audio vector, the pooled output of the audio tower."""
        return self.runtime.audio_dim

    @property
    def device(self) -> str:
        """What computes: "cpu" or "cuda"."""
        return self.runtime.device

    @property
    def runs_on(self) -> str:
        """What computes, and by which library, as people read it."""
        return f"{self.runtime.device} by {self.runtime.name}"

    @property
    def fuses_stored_audio(self) -> bool:
        """Whether the stored audio vector suffices to fuse anew; mid fusion needs the frames."""
        return self.config.fuses_stored_audio

    def encode_audio(self, windows: Iterable[Samples]) -> AudioEmbedding:
        """Embed one clip, given as windows of at most 10 s: a batch of one.

        Its vector ``pooled`` is the mean over all time steps of the tower's frame sequence,
        padding left out. Memory is bounded by ``WINDOWS_PER_BATCH`` windows, however long the clip.
        ``ValueError`` if there is no window.
        """
        accumulator = AudioAccumulator(self.audio_dim)
        for number, (_, embedding) in enumerate(self.encode_each(windows)):
            accumulator.add(number, embedding)
        return accumulator.embedding()

    def encode_each(
        self, windows: Iterable[Samples], *, frames: bool = False
    ) -> Iterator[tuple[Samples, WindowEmbedding]]:
        """Yield each window of a clip with its embedding, ``WINDOWS_PER_BATCH`` encoded at once."""
        encode = self.encode_frames if frames else self.encode_windows
        by_length = itertools.groupby(windows, self.audio_processor.padded_length)
        for _, same_length in by_length:
            while batch := list(itertools.islice(same_length, WINDOWS_PER_BATCH)):
                yield from zip(batch, encode(batch), strict=True)

    def encode_windows(self, windows: Sequence[Samples]) -> list[WindowEmbedding]:
        """Embed windows that ``audio_processor`` pads alike, of whichever clips, as one batch."""
        return self.runtime.encode_windows(*self.audio_processor(windows))

    def encode_frames(self, windows: Sequence[Samples]) -> list[WindowEmbedding]:
        """Embed windows likewise, and keep the frames of each, whatever the fusion."""
        return self.runtime.encode_windows(*self.audio_processor(windows), frames=True)

    def encode_text(self, texts: Sequence[str]) -> Floats:
        """Embed queries in the shared space: ``(len(texts), dim)``, not normalised."""
        return self.runtime.encode_text(self.text_processor(texts))

    def encode_metadata(self, texts: Sequence[str]) -> Floats:
        """Embed metadata in the shared space: ``(len(texts), dim)``, not normalised."""
        return self.runtime.encode_metadata(self.metadata_processor(texts))

    def fuse(self, audio: AudioEmbedding, metadata: Sequence[str]) -> Fused:
        """Fuse sounds with one metadata text each, "" for none.

        An item that has nothing of what this encoder uses, audio or metadata, has a NaN vector.
        """
        items = self.runtime.fuse(audio, self.metadata_processor(metadata))
        norms: Floats = np.linalg.norm(items, axis=1)
        with np.errstate(invalid="ignore"):  # 0 / 0 is that NaN
            return Fused(items / norms[:, None], norms)

    def project_audio(self, pooled: Floats) -> Floats | None:
        """Return what audio vectors ``(items, audio_dim)`` add to their items: ``(items, dim)``.

        ``None`` in mid fusion, where an item is no sum.
        """
        return self.runtime.project_audio(pooled) if self.config.fusion != "mid" else None

    def no_audio(self, items: int) -> AudioEmbedding:
        """Return embeddings of nothing, for encoders that use no audio."""
        return AudioEmbedding(np.zeros((items, self.audio_dim), np.float32))
