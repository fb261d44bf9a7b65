"""PyTorch's runtime, and how arrays become the tensors that a model takes."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, WindowEmbedding
from audiofuse.core.encoder.processing import WINDOWS_PER_BATCH, AudioProcessor, Tokens
from audiofuse.core.encoder.runtime import DeviceLost, OutOfMemory, size_that_holds
from audiofuse.core.model.fusion import AudioTensors
from audiofuse.core.model.hybrid import HybridEncoder, Windows, Words


@contextmanager
def _errors_of_the_seam() -> Iterator[None]:
    """Raise what whoever asks can tell apart without PyTorch.

    The cause loses its traceback, whose frames hold the batch's memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error)) from error.with_traceback(None)
    except torch.AcceleratorError as error:
        raise DeviceLost(str(error)) from error.with_traceback(None)


class TorchRuntime:
    """Runs a ``HybridEncoder`` without gradients, where its weights are."""

    name = "torch"

    def __init__(
        self,
        model: HybridEncoder,
        dtype: torch.dtype = torch.float32,
        *,
        few_shapes: bool = False,
    ) -> None:
        """Compute in ``dtype``: by autocast, where that is not float32.

        With ``few_shapes`` batches of windows are padded to few sizes, see ``size_that_holds``.
        """
        self.model = model
        self.few_shapes = few_shapes
        self._dtype = dtype

    @property
    def device(self) -> str:
        """Where the weights are: "cpu" or "cuda"."""
        return self.model.device.type

    @property
    def audio_dim(self) -> int:
        """Width of the audio vector."""
        return self.model.audio_tower.channels

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self._dtype, enabled=self._dtype != torch.float32)

    @_errors_of_the_seam()
    @torch.inference_mode()
    def encode_windows(
        self, waveforms: Samples, lengths: NDArray[np.int32], *, frames: bool = False
    ) -> list[WindowEmbedding]:
        """See ``Runtime``."""
        windows = self._moved(waveforms, lengths)
        if self.few_shapes:
            padding = size_that_holds(len(waveforms)) - len(waveforms)
            windows = [_with_rows(tensor, padding) for tensor in windows]
        with self._autocast():
            sequences, heard = self.model.encode_audio(*windows)
        sequences, heard = sequences[: len(waveforms)], heard[: len(waveforms)]
        totals = _array((sequences * heard.unsqueeze(-1)).sum(1))
        steps: list[int] = heard.sum(1).tolist()
        if not frames and self.model.config.fusion != "mid":
            return list(map(WindowEmbedding, totals, steps))
        own = [sequence[:count] for sequence, count in zip(_array(sequences), steps, strict=True)]
        return list(map(WindowEmbedding, totals, steps, own))

    @_errors_of_the_seam()
    @torch.inference_mode()
    def encode_text(self, tokens: Tokens) -> Floats:
        """See ``Runtime``."""
        with self._autocast():
            return _array(self.model.encode_text(self._words(tokens)))

    @_errors_of_the_seam()
    @torch.inference_mode()
    def encode_metadata(self, tokens: Tokens) -> Floats:
        """See ``Runtime``."""
        with self._autocast():
            return _array(self.model.encode_metadata(self._words(tokens)))

    @_errors_of_the_seam()
    @torch.inference_mode()
    def fuse(self, audio: AudioEmbedding, metadata: Tokens) -> Floats:
        """See ``Runtime``."""
        frames = [] if audio.frames is None or audio.valid is None else [audio.frames, audio.valid]
        sounds = AudioTensors(*self._moved(audio.pooled, *frames))
        with self._autocast():
            return _array(self.model.fuse(sounds, self._words(metadata)))

    @_errors_of_the_seam()
    @torch.inference_mode()
    def project_audio(self, pooled: Floats) -> Floats:
        """See ``Runtime``."""
        with self._autocast():
            return _array(self.model.project_audio(*self._moved(pooled)))

    def free_memory(self) -> None:
        """See ``Runtime``."""
        torch.cuda.empty_cache()

    def _words(self, tokens: Tokens) -> Words:
        return words_on(words(tokens), self.model.device)

    def _moved(self, *arrays: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(array).to(self.model.device) for array in arrays]


def words(tokens: Tokens) -> Words:
    """Return tokens as tensors."""
    return Words(*map(torch.from_numpy, tokens))


def words_on(words: Words, device: torch.device) -> Words:
    """Move words to a device."""
    return Words(*(part.to(device) for part in words))


def windows_on(windows: Sequence[Windows], device: torch.device) -> list[Windows]:
    """Move windows to a device."""
    return [Windows(*(part.to(device) for part in each)) for each in windows]


def windows_of(
    clips: Sequence[Sequence[Samples]], processor: AudioProcessor, at_once: int = WINDOWS_PER_BATCH
) -> list[Windows]:
    """Return the windows of clips as tensors, at most ``at_once`` of one padded length together.

    ``ValueError`` for a clip of no windows.
    """
    if not all(clips):
        msg = "a clip of no windows has no audio vector"
        raise ValueError(msg)
    numbered = ((row, window) for row, clip in enumerate(clips) for window in clip)
    # The last window of a clip is its shortest, so that each clip stays in order.
    longest_first = sorted(numbered, key=lambda each: -processor.padded_length(each[1]))
    batches = []
    by_length = itertools.groupby(longest_first, lambda each: processor.padded_length(each[1]))
    for _, same_length in by_length:
        while batch := list(itertools.islice(same_length, at_once)):
            waveforms, lengths = processor([window for _, window in batch])
            rows = np.array([row for row, _ in batch], np.int64)
            batches.append(Windows(*map(torch.from_numpy, (waveforms, lengths, rows))))
    return batches


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    """Append rows of zeros."""
    return torch.cat([tensor, tensor.new_zeros(rows, *tensor.shape[1:])])


def _array(tensor: Tensor) -> Floats:
    array: Floats = tensor.float().cpu().numpy()
    return array
