"""Augmentation of the mel picture: EfficientAT's masks and jittered bands, in training only."""

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchaudio.functional import mask_along_axis_iid

from audiofuse.core.model.frontend import MelFrontEnd, mel_banks
from audiofuse.core.model.mel import F_MAX, NORM_SCALE, NORM_SHIFT

MASKED = NORM_SHIFT / NORM_SCALE  # a log power of 0, as EfficientAT masks before it normalises
BAND_AXIS, FRAME_AXIS = 2, 3
F_MIN_JITTER, F_MAX_JITTER = 10, 1000  # Hz; EfficientAT, models/preprocess.py


class Augmentation(BaseModel):
    """How much of a picture is masked at most, and whether the bands' edges vary."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    mask_bands: int = Field(default=0, ge=0)
    mask_frames: int = Field(default=0, ge=0)
    jitter_bands: bool = False


class AugmentedFrontEnd(nn.Module):
    """A front end that augments what it gives while it is in training mode."""

    def __init__(self, front_end: MelFrontEnd, augmentation: Augmentation) -> None:
        """Wrap the encoder's own front end, which stays as it is."""
        super().__init__()
        self.front_end = front_end
        self._augmentation = augmentation

    def forward(self, waveform: Tensor) -> Tensor:
        """Turn ``(batch, samples)`` into ``(batch, bands, frames)``, each clip masked its own way.

        Randomness is drawn from torch's global generator. The bands' edges are drawn once for the
        batch.
        """
        if not self.training:
            return self.front_end(waveform)  # type: ignore[no-any-return]
        mel = self.front_end(waveform, self._jittered_banks()).unsqueeze(1)
        for size, axis in (
            (self._augmentation.mask_bands, BAND_AXIS),
            (self._augmentation.mask_frames, FRAME_AXIS),
        ):
            if size:
                mel = mask_along_axis_iid(mel, min(size, mel.shape[axis] // 2), MASKED, axis)
        return mel.squeeze(1)  # type: ignore[no-any-return]

    def _jittered_banks(self) -> Tensor | None:
        if not self._augmentation.jitter_bands:
            return None
        f_min = int(torch.randint(F_MIN_JITTER, ()))
        f_max = F_MAX + F_MAX_JITTER - int(torch.randint(2 * F_MAX_JITTER, ()))
        basis = self.front_end.mel_basis
        return mel_banks(len(basis), f_min, f_max).to(basis.device)
