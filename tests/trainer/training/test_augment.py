"""Augmentation: SpecAugment's masks and jittered bands, in training only."""

import pytest
import torch
from torch import Tensor

from audiofuse.core.model.frontend import MelFrontEnd
from audiofuse.trainer.training.augment import Augmentation, AugmentedFrontEnd

SILENCE_IN_LOG = (0.0 + 4.5) / 5.0  # a log of 0, then EfficientAT's normalisation


@pytest.fixture
def waveform() -> Tensor:
    """Return two clips of a second of noise, whose spectrogram has no value twice."""
    return torch.randn(2, 32_000, generator=torch.Generator().manual_seed(0)) * 0.1


def _front_end(**options: object) -> AugmentedFrontEnd:
    torch.manual_seed(0)
    return AugmentedFrontEnd(MelFrontEnd(), Augmentation.model_validate(options)).train()


@pytest.mark.parametrize(("option", "axis"), [("mask_bands", 1), ("mask_frames", 2)])
def test_whole_bands_and_frames_are_masked(waveform: Tensor, option: str, axis: int) -> None:
    """A mask covers one stretch of whole bands or frames, each clip its own, with a log of 0."""
    augmented, plain = _front_end(**{option: 40}), MelFrontEnd()(waveform)
    found = [0, 0]
    for _ in range(20):  # a mask may be of no width
        mel = augmented(waveform)
        changed = mel != plain
        assert torch.allclose(mel[changed], torch.tensor(SILENCE_IN_LOG))
        lines = changed.any(dim=3 - axis)
        assert torch.equal(lines, changed.all(dim=3 - axis))
        for row, each in enumerate(lines):
            places = each.nonzero().flatten()
            assert len(places) <= 40
            assert len(places) == 0 or int(places[-1] - places[0]) == len(places) - 1
            found[row] += len(places)
        assert not torch.equal(lines[0], lines[1]) or not lines.any()
    assert min(found) > 0


def test_jitter_moves_the_bands(waveform: Tensor) -> None:
    """With jitter the edges of the bands differ from pass to pass; they are those of a mel bank."""
    augmented = _front_end(jitter_bands=True)
    first, second = augmented(waveform), augmented(waveform)
    assert first.shape == MelFrontEnd()(waveform).shape
    assert not torch.equal(first, second)


def test_evaluation_is_not_augmented(waveform: Tensor) -> None:
    """Outside of training the spectrogram is the front end's own."""
    augmented = _front_end(mask_bands=40, mask_frames=40, jitter_bands=True).eval()
    assert torch.equal(augmented(waveform), MelFrontEnd()(waveform))
