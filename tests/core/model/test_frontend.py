"""The mel front end equals EfficientAT's."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audiofuse.core.model.config import HOP_SAMPLES, MEL_BANDS
from audiofuse.core.model.frontend import MelFrontEnd
from audiofuse.core.model.mel import (
    F_MAX,
    MIN_SAMPLES,
    N_FFT,
    NORM_SCALE,
    NORM_SHIFT,
    MelPicture,
    mel_banks,
)

EPS = torch.finfo(torch.float32).eps


def test_has_the_reference_mel_banks(shared: Path) -> None:
    """Every weight of the mel banks equals EfficientAT's, as far as float32 can tell.

    A weight is a distance on the mel scale, which ends near 3,400, over a band's half width. Both
    ends of the distance are rounded twice (to mel, from hertz), and how depends on the CPU.
    """
    expected = _reference(shared)["mel_basis_128x513"]
    top = 1127 * math.log1p(F_MAX / 700)  # mel
    tolerance = 4 * EPS * top / (top / (MEL_BANDS + 1))
    torch.testing.assert_close(MelFrontEnd().mel_basis, expected, rtol=0, atol=tolerance)
    by_numpy = torch.from_numpy(mel_banks(MEL_BANDS))
    torch.testing.assert_close(by_numpy, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("waveform", "reference"), [("waveform_10s", "out_10s"), ("waveform_odd", "out_odd")]
)
def test_equals_the_reference_mel(
    shared: Path, waveform: str, reference: str, dtype: torch.dtype
) -> None:
    """Each value of the mel picture equals EfficientAT's, silence and odd lengths included.

    What may differ is the reference's own float32 rounding, which each family of CPUs does its
    way; ``_rounding`` says how much that may be: half of the values may differ by 4e-6, only those
    that are nearly silent beside a loud band by more.
    """
    parity = _reference(shared)
    basis, signal = parity["mel_basis_128x513"], parity[waveform]
    exact = MelFrontEnd().double()(signal.double(), basis.double())
    mel = MelFrontEnd().to(dtype)(signal.to(dtype), basis.to(dtype)).double()
    tolerance = _rounding(signal.double(), exact, basis.double())
    assert tolerance.median() < 4e-6
    for each in (mel, parity[reference]["mel"].double()):
        assert ((each - exact).abs() <= tolerance).all()


@pytest.mark.parametrize("waveform", ["waveform_10s", "waveform_odd"])
def test_numpy_makes_the_same_picture(shared: Path, waveform: str) -> None:
    """The picture made without PyTorch equals the exact one, as far as float32 can tell."""
    signal = _reference(shared)[waveform]
    basis = torch.from_numpy(mel_banks(MEL_BANDS)).double()
    exact = MelFrontEnd().double()(signal.double(), basis)
    mel = torch.from_numpy(MelPicture()(signal.numpy())).double()
    assert mel.shape == exact.shape
    assert ((mel - exact).abs() <= _rounding(signal.double(), exact, basis)).all()


@pytest.mark.parametrize(("bands", "hop"), [(40, 320), (64, 160), (256, 480), (128, 800)])
def test_numpy_makes_every_released_picture(bands: int, hop: int) -> None:
    """Any number of bands and any hop gives what the front end in PyTorch does."""
    noise = torch.randn(2, 40_000, generator=torch.Generator().manual_seed(0)) / 10
    expected = MelFrontEnd(bands, hop)(noise)
    found = torch.from_numpy(MelPicture(bands, hop)(noise.numpy()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def _reference(shared: Path) -> dict[str, Any]:
    parity: dict[str, Any] = torch.load(
        shared / "parity" / "efficientat_parity.pt", weights_only=True
    )
    return parity


def _rounding(signal: Tensor, mel: Tensor, basis: Tensor) -> Tensor:
    """Return how far float32 may bring each value of ``mel`` ``(batch, bands, frames)``.

    A Fourier transform of n samples adds log2(n) times; each time rounds every bin by EPS of the
    whole frame's length (the root of its energy), however little is in the bin: d. A band's power
    is the sum of weights times |X|^2, which that moves by 2 |X| d + d^2; then follow the logarithm
    and the scaling, which round once each, of values below 4.
    """
    power = (mel * NORM_SCALE - NORM_SHIFT).exp()  # with the offset
    half = N_FFT // 2
    frames = nn.functional.pad(signal[:, 1:], (half, half), mode="reflect")
    length = frames.unfold(-1, N_FFT, HOP_SAMPLES).norm(dim=-1).unsqueeze(1)
    d = math.log2(N_FFT) * EPS * length
    weights = basis.sum(1, keepdim=True)
    moved = 2 * d * (power * weights).sqrt() + d.square() * weights
    return moved / power / NORM_SCALE + 4 * EPS


@pytest.mark.parametrize(("samples", "frames"), [(320_000, 1000), (101_237, 317), (MIN_SAMPLES, 2)])
def test_makes_a_frame_each_ten_milliseconds(samples: int, frames: int) -> None:
    """A waveform of n samples gives 1 + (n - 2) // 320 frames of 128 bands."""
    assert MelFrontEnd()(torch.zeros(2, samples)).shape == (2, 128, frames)


def test_refuses_what_is_too_short() -> None:
    """A waveform shorter than the transform's edge is an error that says how much is needed."""
    short = torch.zeros(1, MIN_SAMPLES - 1)
    with pytest.raises(ValueError, match=str(MIN_SAMPLES)):
        MelFrontEnd()(short)
    with pytest.raises(ValueError, match=str(MIN_SAMPLES)):
        MelPicture()(short.numpy())


def test_digital_silence_is_finite() -> None:
    """Silence gives finite values: the logarithm never meets zero."""
    assert MelFrontEnd()(torch.zeros(1, 32_000)).isfinite().all()
