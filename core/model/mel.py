"""The mel picture by NumPy and SciPy: what ``MelFrontEnd`` gives, where PyTorch is not loaded.

The constants are those of EfficientAT's ``AugmentMelSTFT``, the banks Kaldi's.
"""

from typing import Any

import numpy as np
import scipy.fft
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.model.config import HOP_SAMPLES, MEL_BANDS

N_FFT = 1024  # samples
WIN_LENGTH = 800  # samples, 25 ms
F_MIN = 0.0  # Hz
F_MAX = SAMPLE_RATE / 2 - 1000  # Hz
PREEMPHASIS = 0.97
LOG_OFFSET = 1e-5  # keeps digital silence finite
NORM_SHIFT = 4.5  # fast normalisation: (x + 4.5) / 5 brings AudioSet to about zero mean
NORM_SCALE = 5.0

# Shortest waveform the transform takes: after pre-emphasis the reflected edge (N_FFT // 2 samples)
# must be shorter than the signal itself.
MIN_SAMPLES = N_FFT // 2 + 2
# Frames that are worked on at once. More: their spectrum leaves the cache, and BLAS starts threads
# for products that are not worth them; fewer: more calls.
FRAMES_AT_ONCE = 100
# Mel bands that one product makes, of only those bins that they hear. More: more products by zero;
# fewer: more calls.
BANDS_AT_ONCE = 16

Floats = NDArray[np.float32]


def check_length(samples: int) -> None:
    """Raise ``ValueError`` for waveforms that are too short for a picture."""
    if samples < MIN_SAMPLES:
        msg = f"the mel front end needs {MIN_SAMPLES} samples, got {samples}"
        raise ValueError(msg)


def mel_banks(bands: int) -> Floats:
    """Return Kaldi's triangular mel banks from ``F_MIN`` to ``F_MAX``: ``(bands, 513)``."""
    bins = _mel(np.arange(N_FFT // 2 + 1) * (SAMPLE_RATE / N_FFT))
    corners = np.linspace(_mel(F_MIN), _mel(F_MAX), bands + 2)[:, None]
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _mel(hertz: Any) -> NDArray[np.float64]:
    return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)


class MelPicture:
    """Log-mel spectrogram: see ``MelFrontEnd``, whose numbers these are."""

    def __init__(self, mel_bands: int = MEL_BANDS, hop_samples: int = HOP_SAMPLES) -> None:
        """Build the front end of a released variant: 40 to 256 bands, a hop of 5 to 25 ms."""
        self._bands = mel_bands
        self._hop = hop_samples
        self._window = np.hanning(WIN_LENGTH).astype(np.float32)
        self._blocks = _blocks(mel_banks(mel_bands))

    def __call__(self, waveforms: Samples) -> Floats:
        """Turn waveforms ``(batch, samples)`` at 32 kHz into ``(batch, mel_bands, frames)``.

        Raises ``ValueError`` for waveforms shorter than ``MIN_SAMPLES``.
        """
        check_length(waveforms.shape[-1])
        emphasised = waveforms[:, 1:] - np.float32(PREEMPHASIS) * waveforms[:, :-1]
        # A window shorter than the transform needs no more of the reflected edge than its half.
        edge = WIN_LENGTH // 2
        padded = np.pad(emphasised, ((0, 0), (edge, edge)), mode="reflect")
        frames = sliding_window_view(padded, WIN_LENGTH, axis=1)[:, :: self._hop]
        mel = np.empty((*frames.shape[:2], self._bands), np.float32)
        for sound, out in zip(frames, mel, strict=True):
            for start in range(0, len(sound), FRAMES_AT_ONCE):
                some = slice(start, start + FRAMES_AT_ONCE)
                self._transform(sound[some], out[some])
        picture = (np.log(mel + np.float32(LOG_OFFSET)) + np.float32(NORM_SHIFT)) / np.float32(
            NORM_SCALE
        )
        return np.ascontiguousarray(picture.transpose(0, 2, 1))

    def _transform(self, frames: Floats, out: Floats) -> None:
        """Write the mel energies of frames ``(frames, 800)`` to ``out`` ``(frames, bands)``."""
        # SciPy's transform takes several frames at once, and so less than half as long as NumPy's.
        spectrum = scipy.fft.rfft(frames * self._window, N_FFT)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        for bands, bins, banks in self._blocks:
            np.matmul(power[:, bins], banks, out=out[:, bands])


def _blocks(banks: Floats) -> list[tuple[slice, slice, Floats]]:
    """Cut banks into blocks: which bands, which bins they hear, weights ``(bins, bands)``."""
    blocks = []
    for start in range(0, len(banks), BANDS_AT_ONCE):
        some = banks[start : start + BANDS_AT_ONCE]
        heard = np.flatnonzero(some.any(axis=0))
        bins = slice(int(heard[0]), int(heard[-1]) + 1)
        weights = np.ascontiguousarray(some[:, bins].T)
        blocks.append((slice(start, start + len(some)), bins, weights))
    return blocks
