"""Preparing an encoder makes it faster and changes nothing that it gives."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import prepare
from audiofuse.core.encoder.starting import default_encoder
from audiofuse.core.encoder.torch_runtime import TorchRuntime

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"


@pytest.mark.parametrize("name", ["music/tabla-loop.m4a", "animals/duck-quack.wav"])
def test_a_prepared_encoder_hears_the_same(name: str) -> None:
    """Folding batch norms and laying out channels last moves no vector by more than rounding."""
    encoder = default_encoder()
    prepared = prepare(copy.deepcopy(encoder))
    with open_recording(SOUNDS / name, max_duration_s=60) as recording:
        windows = list(recording.windows())
    expected, embedding = encoder.encode_audio(windows), prepared.encode_audio(windows)
    np.testing.assert_allclose(embedding.pooled, expected.pooled, rtol=1e-4, atol=1e-4)
    items = np.concatenate(
        [each.fuse(embedding, ["a drum"]).vectors for each in (encoder, prepared)]
    )
    assert float(items[0] @ items[1]) > 1 - 1e-6


def test_nothing_is_left_to_fold(tiny_encoder: Encoder) -> None:
    """No batch norm remains in a prepared audio tower's features."""
    prepared = prepare(copy.deepcopy(tiny_encoder))
    kinds = {type(module) for module in prepared.model.audio_tower.features.modules()}
    assert torch.nn.BatchNorm2d not in kinds


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_a_gpu_stays_close(dtype: torch.dtype) -> None:
    """Under autocast on a GPU an item stays within cosine 0.999 of float32."""
    encoder = default_encoder()
    encoder.model.to("cuda")
    with open_recording(SOUNDS / "music/tabla-loop.m4a", max_duration_s=60) as recording:
        windows = list(recording.windows())
    expected = encoder.fuse(encoder.encode_audio(windows), ["a drum"]).vectors[0]
    encoder.runtime = TorchRuntime(encoder.model, dtype)
    item = encoder.fuse(encoder.encode_audio(windows), ["a drum"]).vectors[0]
    assert float(item @ expected) > 0.999
