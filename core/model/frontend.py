"""EfficientAT's mel front end: a 32 kHz waveform becomes the log-mel picture the audio tower sees.

The numbers are those of EfficientAT's ``AugmentMelSTFT`` in evaluation mode (models/preprocess.py);
``tests/core/model/test_frontend.py`` holds them against tensors that code produced.
"""

import torch
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks

from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.model.config import HOP_SAMPLES, MEL_BANDS
from audiofuse.core.model.mel import (
    F_MAX,
    F_MIN,
    LOG_OFFSET,
    N_FFT,
    NORM_SCALE,
    NORM_SHIFT,
    PREEMPHASIS,
    WIN_LENGTH,
    check_length,
)


def mel_banks(bands: int, f_min: float, f_max: float) -> Tensor:
    """Return Kaldi's triangular mel banks from ``f_min`` to ``f_max`` Hz: ``(bands, 513)``."""
    banks, _ = get_mel_banks(
        bands, N_FFT, float(SAMPLE_RATE), f_min, f_max,
        vtln_low=100.0, vtln_high=-500.0, vtln_warp_factor=1.0,
    )  # fmt: skip
    return nn.functional.pad(banks, (0, 1))  # the Nyquist bin carries no weight


class MelFrontEnd(nn.Module):
    """Log-mel spectrogram: pre-emphasis, STFT power, Kaldi mel bands, log, fast normalisation."""

    window: Tensor
    mel_basis: Tensor

    def __init__(self, mel_bands: int = MEL_BANDS, hop_samples: int = HOP_SAMPLES) -> None:
        """Build the front end of a released variant: 40 to 256 bands, a hop of 5 to 25 ms."""
        super().__init__()
        self.hop_samples = hop_samples
        buffers = {
            "window": torch.hann_window(WIN_LENGTH, periodic=False),
            "mel_basis": mel_banks(mel_bands, F_MIN, F_MAX),
        }
        for name, value in buffers.items():  # constants: in no checkpoint, so not persistent
            self.register_buffer(name, value, persistent=False)

    def forward(self, waveform: Tensor, mel_basis: Tensor | None = None) -> Tensor:
        """Turn waveforms ``(batch, samples)`` at 32 kHz into ``(batch, mel_bands, frames)``.

        ``frames = 1 + (samples - 2) // hop_samples``: 10 s give 1000. Training may give other mel
        banks than the front end's own. Raises ``ValueError`` for waveforms shorter than
        ``MIN_SAMPLES``.
        """
        check_length(waveform.shape[-1])
        emphasised = waveform[:, 1:] - PREEMPHASIS * waveform[:, :-1]
        spectrum = torch.stft(
            emphasised, N_FFT, hop_length=self.hop_samples, win_length=WIN_LENGTH,
            window=self.window, center=True, return_complex=True,
        )  # fmt: skip
        power = spectrum.real.square() + spectrum.imag.square()
        mel = torch.matmul(self.mel_basis if mel_basis is None else mel_basis, power)
        return ((mel + LOG_OFFSET).log() + NORM_SHIFT) / NORM_SCALE
