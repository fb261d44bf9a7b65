"""The seam between what asks and what computes: arrays on both sides, whatever the framework."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, WindowEmbedding
from audiofuse.core.encoder.processing import Tokens


def size_that_holds(windows: int) -> int:
    """Return the smallest of few sizes of a batch that holds so many windows.

    A GPU's libraries look for the fastest kernels anew for each shape that they have not met, and
    keep what they found. Sizes are powers of two, and halfway between them, so that at most a third
    of a batch is padding, and 16 of them reach 256.
    """
    power = 1 << (windows - 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= windows else power


def size_within(windows: int) -> int:
    """Return the largest of those sizes that has at most so many windows."""
    power = 1 << (windows.bit_length() - 1)
    return power * 3 // 2 if power * 3 // 2 <= windows else power


class OutOfMemory(Exception):  # noqa: N818 - what it is
    """A batch does not fit the device's memory; a smaller one may."""


class DeviceLost(Exception):  # noqa: N818 - what it is
    """The device has failed for good: no later batch would fare better."""


class Runtime(Protocol):
    """Runs one model. Every vector is float32, and of whatever length the model gives it.

    What does not fit raises ``OutOfMemory``, what breaks the device ``DeviceLost``.
    """

    @property
    def name(self) -> str:
        """Which library computes: "torch" or "onnxruntime"."""

    @property
    def device(self) -> str:
        """What computes: "cpu" or "cuda"."""

    @property
    def few_shapes(self) -> bool:
        """Whether batches of windows are padded to few sizes; see ``size_that_holds``."""

    @property
    def audio_dim(self) -> int:
        """Width of the audio vector, the pooled output of the audio tower."""

    def encode_windows(
        self, waveforms: Samples, lengths: NDArray[np.int32], *, frames: bool = False
    ) -> list[WindowEmbedding]:
        """Embed windows ``(windows, samples)``, of which ``lengths`` are heard, as one batch.

        With ``frames`` they have their frames, which in mid fusion they always have.
        """

    def encode_text(self, tokens: Tokens) -> Floats:
        """Embed queries in the shared space: ``(texts, dim)``."""

    def encode_metadata(self, tokens: Tokens) -> Floats:
        """Embed metadata in the shared space: ``(texts, dim)``."""

    def fuse(self, audio: AudioEmbedding, metadata: Tokens) -> Floats:
        """Fuse sounds with one metadata text each: ``(items, dim)``."""

    def project_audio(self, pooled: Floats) -> Floats:
        """Return what audio vectors ``(items, audio_dim)`` add to their items: ``(items, dim)``."""

    def free_memory(self) -> None:
        """Give back what memory of the device is kept for later batches."""
