"""Hearing a recording once for its item and its windows."""

import numpy as np
import pytest

from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.model.config import TINY, Grid
from audiofuse.core.moments.hearing import hear

GRID = Grid()


def _recording(seconds: float) -> list[Samples]:
    """Return a recording as it is decoded: windows of 10 s, the last one shorter."""
    rng = np.random.default_rng(0)
    samples = (rng.standard_normal(round(seconds * SAMPLE_RATE)) / 10).astype("f4")
    return [
        samples[start : start + WINDOW_SAMPLES] for start in range(0, len(samples), WINDOW_SAMPLES)
    ]


def _encoder(fusion: str) -> Encoder:
    return Encoder.random(TINY.model_copy(update={"fusion": fusion}), seed=0)


@pytest.mark.parametrize("fusion", ["late", "mid", "audio"])
def test_the_item_is_as_without_moments(fusion: str) -> None:
    """Looking for moments changes no item, and each window gets a vector of unit length."""
    encoder, windows = _encoder(fusion), _recording(13)
    heard = hear(encoder, iter(windows), "rain", GRID)
    item = encoder.fuse(encoder.encode_audio(windows), ["rain"]).vectors[0]
    np.testing.assert_array_equal(heard.item, item)
    assert heard.duration_s == 13
    assert heard.spans.tolist() == [[0, 5], [5, 10], [10, 13]]
    np.testing.assert_allclose(np.linalg.norm(heard.vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("fusion", ["late", "mid"])
def test_a_window_is_fused_with_the_words_of_its_recording(fusion: str) -> None:
    """Other words are another vector of each window, in late and in mid fusion."""
    encoder, windows = _encoder(fusion), _recording(10)
    rain, none = (hear(encoder, windows, text, GRID).vectors for text in ("rain", ""))
    assert np.abs(rain - none).max(axis=1).min() > 1e-3


def test_an_encoder_that_hears_nothing_finds_no_moments() -> None:
    """To an encoder of metadata alone a recording is an item without windows."""
    encoder, windows = _encoder("metadata"), _recording(10)
    heard = hear(encoder, windows, "rain", GRID)
    assert heard.vectors.shape == (0, encoder.dim)
    assert heard.spans.shape == (0, 2)


def test_a_short_sound_has_an_item_only(tiny_encoder: Encoder) -> None:
    """What is one window has no moments."""
    assert not len(hear(tiny_encoder, _recording(4), "", GRID).spans)
