"""Mid fusion: what its sequence is made of."""

import torch

from audiofuse.core.model.config import MidShape
from audiofuse.core.model.fusion import AudioTensors, MidFusion, TextTokens

SHAPE = MidShape(layers=1, width=8, heads=2, feedforward=28)


def _sequence(frames: torch.Tensor, valid: torch.Tensor) -> tuple[MidFusion, torch.Tensor]:
    """Return a fusion and the sequence of tokens that its transformer is given."""
    torch.manual_seed(0)
    fusion = MidFusion(6, 5, 4, SHAPE).eval()
    given = []
    fusion.layers.register_forward_pre_hook(lambda _module, inputs: given.append(inputs[0]))
    there = torch.ones(len(frames), 3, dtype=torch.bool)
    text = TextTokens(torch.randn(len(frames), 3, 5), there, there[:, 0])
    fusion(AudioTensors(frames.mean(1), frames, valid), text)
    return fusion, given[0]


def test_the_audio_token_holds_the_mean_of_the_frames() -> None:
    """Between metadata and frames stands the learned token plus the mean of all true frames."""
    frames = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    fusion, sequence = _sequence(frames, valid)
    for row, count in enumerate((4, 2)):
        expected = fusion.audio_token + fusion.frames_in(frames[row, :count]).mean(0)
        torch.testing.assert_close(sequence[row, 3], expected, rtol=1e-4, atol=1e-5)


def test_frames_know_their_place() -> None:
    """Equal frames differ in the sequence by their positions."""
    _, sequence = _sequence(torch.ones(1, 4, 6), torch.ones(1, 4, dtype=torch.bool))
    assert not torch.allclose(sequence[0, 4], sequence[0, 5])
