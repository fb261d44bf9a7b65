"""The mel front end equals EfficientAT's."""

from pathlib import Path

import pytest
import torch

from audiofuse.core.encoder.frontend import MIN_SAMPLES, MelFrontEnd


@pytest.mark.parametrize(
    ("waveform", "reference"), [("waveform_10s", "out_10s"), ("waveform_odd", "out_odd")]
)
def test_equals_the_reference_mel(shared: Path, waveform: str, reference: str) -> None:
    """The mel picture equals EfficientAT's own to 1e-6, silence and odd lengths included."""
    parity = torch.load(shared / "parity" / "efficientat_parity.pt", weights_only=True)
    mel = MelFrontEnd()(parity[waveform])
    torch.testing.assert_close(mel, parity[reference]["mel"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("samples", "frames"), [(320_000, 1000), (101_237, 317), (MIN_SAMPLES, 2)])
def test_makes_a_frame_each_ten_milliseconds(samples: int, frames: int) -> None:
    """A waveform of n samples gives 1 + (n - 2) // 320 frames of 128 bands."""
    assert MelFrontEnd()(torch.zeros(2, samples)).shape == (2, 128, frames)


def test_refuses_what_is_too_short() -> None:
    """A waveform shorter than the transform's edge is an error that says how much is needed."""
    with pytest.raises(ValueError, match=str(MIN_SAMPLES)):
        MelFrontEnd()(torch.zeros(1, MIN_SAMPLES - 1))


def test_digital_silence_is_finite() -> None:
    """Silence gives finite values: the logarithm never meets zero."""
    assert MelFrontEnd()(torch.zeros(1, 32_000)).isfinite().all()
