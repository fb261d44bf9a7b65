"""The model is a function of tensors: what wraps and compiles modules takes it as it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.torch_runtime import windows_of, words
from audiofuse.core.model.config import TINY
from audiofuse.core.model.hybrid import HybridEncoder, Windows, Words

TEXTS = ["a dog barks", "", "rain on a tin roof"]


def _encoder(fusion: str = "late") -> Encoder:
    return Encoder.random(TINY.model_copy(update={"fusion": fusion}), seed=0)


def _inputs(encoder: Encoder) -> tuple[list[Windows], Words]:
    chance = np.random.default_rng(0)
    seconds = (1.5, 12, 0.3)  # one clip is two windows
    clips = [chance.standard_normal(int(s * SAMPLE_RATE)).astype(np.float32) / 9 for s in seconds]
    cut = [np.split(clip, [10 * SAMPLE_RATE]) for clip in clips]
    windows = [[window for window in clip if window.size] for clip in cut]
    return windows_of(windows, encoder.audio_processor), words(encoder.metadata_processor(TEXTS))


def test_it_is_compiled_whole() -> None:
    """The forward pass is one graph, without a break, and gives what it gives uncompiled."""
    encoder = _encoder()
    compiled = torch.compile(encoder.model, backend="eager", fullgraph=True)
    inputs = _inputs(encoder)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), encoder.model(*inputs))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """Be the only process of a group."""
    distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("fusion", ["late", "mid"])
def test_it_is_wrapped_for_many_processes(fusion: str) -> None:
    """PyTorch's own wrapper gives the same items and the same gradients."""
    encoder = _encoder(fusion)
    inputs = _inputs(encoder)
    wrapped = DistributedDataParallel(encoder.model, find_unused_parameters=True)
    gradients = []
    for model in (encoder.model, wrapped):
        encoder.model.zero_grad()
        model(*inputs).square().sum().backward()
        gradients.append(_gradients(encoder.model))
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def _gradients(model: HybridEncoder) -> dict[str, Any]:
    named = model.named_parameters()
    return {name: each.grad.clone() for name, each in named if each.grad is not None}


@pytest.mark.parametrize("fusion", ["late", "mid"])
def test_clips_do_not_depend_on_how_windows_are_grouped(fusion: str) -> None:
    """Windows of all clips one by one give what many at once give."""
    encoder = _encoder(fusion)
    windows, metadata = _inputs(encoder)
    single = [
        Windows(*(part[row : row + 1] for part in batch))
        for batch in windows
        for row in range(len(batch.rows))
    ]
    assert len(single) > len(windows)
    with torch.no_grad():
        together, alone = (encoder.model(each, metadata) for each in (windows, single))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
