"""What is done to sounds and words before they are tensors: part of what decides a vector."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from audiofuse.core.audio.recording import SAMPLE_RATE, WINDOW_S, WINDOW_SAMPLES, Samples


class Preprocessing(BaseModel):
    """How sounds are cut and padded and texts normalised; a bundle keeps what it was made with.

    The defaults are what bundles mean that do not say. What admits one value only is done in that
    way by this version; a bundle that was made in another is refused instead of misread.

    ``padding_s``: windows are padded with zeros to a multiple of so many seconds. What is padding
    is no part of the vector, but the audio tower sees it. ``silence_s``: silence that is appended
    to a sound and heard as part of it, as far as its last window has room.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sample_rate: Literal[32000] = 32000  # Hz
    window_s: Literal[10] = 10
    padding_s: float = Field(default=1.0, gt=0, le=WINDOW_S)
    silence_s: float = Field(default=0.0, ge=0, le=WINDOW_S)
    silent_below_db: Literal[-80] = -80  # of full scale; such sounds are refused
    text: Literal["lower case, no punctuation"] = "lower case, no punctuation"  # query.normalise


class AudioProcessor:
    """Turns windows of sounds into batches of waveforms, padded alike."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Pad, and append silence, as a bundle says."""
        self._multiple = round(preprocessing.padding_s * SAMPLE_RATE)
        self._silence = round(preprocessing.silence_s * SAMPLE_RATE)

    def heard_length(self, window: Samples) -> int:
        """Return how many samples of a padded window are heard: its own, and appended silence.

        Only the last window of a sound is shorter than others, so that only it has room.
        """
        return max(window.size, min(window.size + self._silence, WINDOW_SAMPLES))

    def padded_length(self, window: Samples) -> int:
        """Return to how many samples a window is padded."""
        return -(-self.heard_length(window) // self._multiple) * self._multiple

    def __call__(self, windows: Sequence[Samples]) -> tuple[Samples, NDArray[np.int32]]:
        """Pad windows, float32 ``(samples,)`` each, to the longest of them and its padding.

        Returns waveforms, float32 ``(windows, samples)``, and how much of each is heard, int32
        ``(windows,)``.
        """
        waveforms = np.zeros((len(windows), max(map(self.padded_length, windows))), np.float32)
        for row, window in zip(waveforms, windows, strict=True):
            row[: window.size] = window
        return waveforms, np.array([self.heard_length(w) for w in windows], np.int32)
