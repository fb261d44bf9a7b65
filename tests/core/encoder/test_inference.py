"""What makes an encoder faster changes nothing, or little, of what it gives."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import LEAST_COSINE, prepare, run_on_gpu
from audiofuse.core.encoder.runtime import size_that_holds, size_within
from audiofuse.core.encoder.starting import default_encoder
from audiofuse.core.encoder.torch_runtime import TorchRuntime
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import TINY

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SIZES_TO_256 = 16


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


def test_batches_of_few_sizes_waste_little() -> None:
    """A batch of any size is padded by less than a half of it, and full ones not at all."""
    sizes = {size_that_holds(windows) for windows in range(1, 257)}
    assert len(sizes) == SIZES_TO_256
    for windows in range(1, 257):
        assert windows <= size_that_holds(windows) <= 1.5 * windows
        assert size_within(windows) <= windows < size_that_holds(windows + 1)
        assert size_that_holds(size_within(windows)) == size_within(windows)


@pytest.mark.parametrize("fusion", ["late", "mid"])
def test_padding_a_batch_changes_nothing(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of windows comes, the model sees few, and each window is heard as before."""
    encoder = Encoder.random(TINY.model_copy(update={"fusion": fusion}), seed=0)
    rng, seen, encode = np.random.default_rng(0), set(), encoder.model.encode_audio
    windows = [
        rng.standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)
        for seconds in rng.uniform(1.1, 1.9, 13)
    ]
    expected = encoder.encode_windows(windows)

    def watched(waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        seen.add(len(waveforms))
        return encode(waveforms, lengths)

    monkeypatch.setattr(encoder.model, "encode_audio", watched)
    encoder.runtime = TorchRuntime(encoder.model, few_shapes=True)
    for count in range(1, len(windows) + 1):
        found = encoder.encode_windows(windows[:count])
        assert len(found) == count
        for each, plain in zip(found, expected[:count], strict=True):
            assert each.steps == plain.steps
            np.testing.assert_allclose(each.total, plain.total, rtol=1e-4, atol=1e-4)
            if fusion == "mid":
                np.testing.assert_allclose(each.frames, plain.frames, rtol=1e-4, atol=1e-4)
    assert seen == {1, 2, 3, 4, 6, 8, 12, 16}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_half_precision_stays_close(device: str) -> None:
    """An encoder that may run so gives real sounds items within cosine 0.999 of float32's."""
    encoder = prepare(default_encoder())
    with open_recording(SOUNDS / "music/tabla-loop.m4a", max_duration_s=60) as recording:
        windows = list(recording.windows())
    expected = encoder.fuse(encoder.encode_audio(windows), ["a drum"]).vectors[0]
    run_on_gpu(encoder, device, "float16")
    item = encoder.fuse(encoder.encode_audio(windows), ["a drum"]).vectors[0]
    assert LEAST_COSINE < float(item @ expected) < 1 - 1e-7  # else it was float32 after all


def test_half_precision_is_refused_where_it_does_not_hold(tiny_encoder: Encoder) -> None:
    """A tower whose numbers are too large for float16 is refused instead of run."""
    encoder = copy.deepcopy(tiny_encoder)
    last = encoder.model.audio_tower.features[-1][0]
    last.weight.data *= 1e9
    run_on_gpu(encoder, "cpu", "float32")
    with pytest.raises(ConfigurationError, match="AUDIOFUSE_PRECISION is float16"):
        run_on_gpu(encoder, "cpu", "float16")
