"""The encoder: one vector for one item, whatever it is encoded beside."""

from pathlib import Path

import numpy as np
import pytest
import torch

from core.audio import WINDOW_SAMPLES, Samples, open_recording
from core.encoder import TINY, AudioConfig, Encoder, EncoderConfig

SOUNDS = Path(__file__).parent.parent / "examples" / "sounds"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LONG, SHORT = "music/tabla-loop.m4a", "animals/duck-quack.wav"  # 10.7 s and 0.26 s


def _windows(name: str) -> list[Samples]:
    with open_recording(SOUNDS / name, max_duration_s=60) as recording:
        return list(recording.windows())


@pytest.mark.parametrize("name", [LONG, SHORT])
def test_hearing_is_reproducible(tiny_encoder: Encoder, name: str) -> None:
    """The same sound gives the same vector, bit for bit, and a finite one."""
    first, second = (tiny_encoder.hear(_windows(name)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.isfinite().all()


def test_hearing_does_not_depend_on_how_windows_are_batched(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows heard eight at a time or one by one give the same vector."""
    rng = np.random.default_rng(0)
    windows = [rng.standard_normal(WINDOW_SAMPLES).astype("f4") / 10 for _ in range(9)]
    windows.append(windows[0][:50_000])
    together = tiny_encoder.hear(windows)
    monkeypatch.setattr("core.encoder.WINDOWS_PER_BATCH", 1)
    torch.testing.assert_close(tiny_encoder.hear(windows), together, **CLOSE)


def test_padding_within_a_second_is_left_out(tiny_encoder: Encoder) -> None:
    """Steps that hold only padding do not count: a quarter second weighs a quarter of a second."""
    windows = _windows(LONG)
    frames, valid = tiny_encoder._frames([windows[0][:8000]])
    assert frames.shape[:2] == valid.shape
    assert valid.sum() == 1  # of the four steps of one second


def test_a_clip_of_no_windows_is_an_error(tiny_encoder: Encoder) -> None:
    """Nothing heard is an error, not a vector of zeros."""
    with pytest.raises(ValueError, match="no windows"):
        tiny_encoder.hear([])


def test_an_item_is_the_sum_of_its_parts(tiny_encoder: Encoder) -> None:
    """Late fusion adds the projections before they are normalised (arXiv 2406.15897)."""
    audio = torch.stack([tiny_encoder.hear(_windows(name)) for name in (LONG, SHORT)])
    fused = tiny_encoder.fuse(audio, ["a drum", "a duck"])
    expected = tiny_encoder.project_audio(audio) + tiny_encoder.read(["a drum", "a duck"])
    torch.testing.assert_close(fused.vectors * fused.norms[:, None], expected, **CLOSE)
    torch.testing.assert_close(fused.vectors.norm(dim=1), torch.ones(2), **CLOSE)


@pytest.mark.parametrize("text", ["", "  ", "?!"])
def test_an_item_without_words_is_its_audio(tiny_encoder: Encoder, text: str) -> None:
    """Missing metadata, or metadata that is punctuation only, leaves the projected audio alone."""
    audio = tiny_encoder.hear(_windows(SHORT)).unsqueeze(0)
    expected = torch.nn.functional.normalize(tiny_encoder.project_audio(audio))
    torch.testing.assert_close(tiny_encoder.fuse(audio, [text]).vectors, expected, **CLOSE)


def test_an_item_does_not_depend_on_its_neighbours(tiny_encoder: Encoder) -> None:
    """Fused alone, in a batch, or in another order, an item has the same vector."""
    audio = torch.stack([tiny_encoder.hear(_windows(name)) for name in (LONG, SHORT)])
    texts = ["a drum played for some time", ""]
    together = tiny_encoder.fuse(audio, texts).vectors
    alone = torch.cat(
        [tiny_encoder.fuse(audio[i : i + 1], texts[i : i + 1]).vectors for i in (0, 1)]
    )
    swapped = tiny_encoder.fuse(audio.flip(0), texts[::-1]).vectors.flip(0)
    torch.testing.assert_close(alone, together, **CLOSE)
    torch.testing.assert_close(swapped, together, **CLOSE)


def test_fusing_leaves_the_stored_audio_alone(tiny_encoder: Encoder) -> None:
    """Fusing does not write into the audio vectors that it is given."""
    audio = tiny_encoder.hear(_windows(SHORT)).unsqueeze(0)
    before = audio.clone()
    tiny_encoder.fuse(audio, ["a duck"])
    assert torch.equal(audio, before)


@pytest.mark.parametrize("head", ["linear", "classes"])
def test_both_audio_heads_build_from_the_configuration(head: str) -> None:
    """Either head brings audio into the space of the words."""
    config = TINY.model_copy(update={"audio": AudioConfig(width=0.1, head=head)})
    encoder = Encoder.random(config, seed=0)
    assert encoder.project_audio(torch.rand(3, encoder.audio_dim)).shape == (3, config.dim)


def test_random_encoders_are_reproducible() -> None:
    """The same seed gives the same weights, and leaves the caller's random numbers alone."""
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second = (Encoder.random(TINY, seed=3).state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_configuration_refuses_what_it_does_not_know() -> None:
    """A misspelt or future field is an error, not a silently different model."""
    with pytest.raises(ValueError, match="fusoin"):
        EncoderConfig.model_validate(TINY.model_dump() | {"fusoin": "late"})
