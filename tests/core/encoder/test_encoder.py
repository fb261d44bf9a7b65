"""The encoder: one vector for one item, whatever it is encoded beside."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import WINDOW_SAMPLES, Samples
from audiofuse.core.encoder.accumulator import FramePooler
from audiofuse.core.encoder.embeddings import AudioEmbedding, unit
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.torch_runtime import windows_of, words
from audiofuse.core.model.config import TINY, AudioConfig, EncoderConfig
from audiofuse.core.model.fusion import averaged_down

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LONG, SHORT = "music/tabla-loop.m4a", "animals/duck-quack.wav"  # 10.7 s and 0.26 s


def _windows(name: str) -> list[Samples]:
    with open_recording(SOUNDS / name, max_duration_s=60) as recording:
        return list(recording.windows())


@pytest.mark.parametrize("name", [LONG, SHORT])
def test_hearing_is_reproducible(tiny_encoder: Encoder, name: str) -> None:
    """The same sound gives the same vector, bit for bit, and a finite one."""
    first, second = (tiny_encoder.encode_audio(_windows(name)) for _ in range(2))
    assert np.array_equal(first.pooled, second.pooled)
    assert np.isfinite(first.pooled).all()


def test_hearing_does_not_depend_on_how_windows_are_batched(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows embedded eight at a time or one by one give the same vector."""
    rng = np.random.default_rng(0)
    windows = [rng.standard_normal(WINDOW_SAMPLES).astype("f4") / 10 for _ in range(9)]
    windows.append(windows[0][:50_000])
    together = tiny_encoder.encode_audio(windows)
    monkeypatch.setattr("audiofuse.core.encoder.encoder.WINDOWS_PER_BATCH", 1)
    np.testing.assert_allclose(tiny_encoder.encode_audio(windows).pooled, together.pooled, **CLOSE)


def test_padding_within_a_second_is_left_out(tiny_encoder: Encoder) -> None:
    """Steps that hold only padding do not count: a quarter second weighs a quarter of a second."""
    windows = _windows(LONG)
    (embedding,) = tiny_encoder.encode_windows([windows[0][:8000]])
    assert embedding.steps == 1  # of the four steps of one second


SHAPES: dict[str, dict[str, Any]] = {
    "late": {},
    "late, classes": {"audio": AudioConfig(width=0.1, head="classes")},
    "late, the empty text for no metadata": {"absent": "empty"},
    "late, separate tower": {"metadata": TINY.text},
    "mid": {"fusion": "mid"},
    "mid, separate tower": {"fusion": "mid", "metadata": TINY.text},
    "audio": {"fusion": "audio"},
    "metadata": {"fusion": "metadata"},
    "metadata, separate tower": {"fusion": "metadata", "metadata": TINY.text},
}


def _trained(encoder: Encoder, clips: list[list[Samples]], metadata: list[str]) -> torch.Tensor:
    """Return items as training encodes them: with gradients."""
    windows = windows_of(clips, encoder.audio_processor) if encoder.config.uses_audio else []
    items: torch.Tensor = encoder.model(windows, words(encoder.metadata_processor(metadata)))
    return items


def _tiny(**changes: Any) -> EncoderConfig:
    return EncoderConfig.model_validate(TINY.model_dump() | changes)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_reach_every_trainable_parameter(shape: str) -> None:
    """Whatever is to be trained takes part in some item or query vector."""
    encoder = Encoder.random(_tiny(**SHAPES[shape]), seed=0)
    items = _trained(encoder, [_windows(LONG), _windows(SHORT)], ["a drum", "a duck"])
    queries = encoder.model.encode_text(words(encoder.text_processor(["a drum loop", "a bird"])))
    (items * queries).sum().backward()
    for name, parameter in encoder.model.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.isfinite().all())
        assert reached == parameter.requires_grad, name


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_encodes_as_it_trains(shape: str) -> None:
    """``encode_audio`` and ``fuse`` give what the differentiable pass gives, of unit length."""
    encoder = Encoder.random(_tiny(**SHAPES[shape]), seed=0)
    sounds = [encoder.encode_audio(_windows(name)) for name in (LONG, SHORT)]
    fused = encoder.fuse(AudioEmbedding.stack(sounds), ["a drum", "a duck"])
    with torch.no_grad():
        items = _trained(encoder, [_windows(LONG), _windows(SHORT)], ["a drum", "a duck"])
    np.testing.assert_allclose(fused.vectors * fused.norms[:, None], items, **CLOSE)
    np.testing.assert_allclose(np.linalg.norm(fused.vectors, axis=1), 1, **CLOSE)


def test_the_authors_add_the_empty_text() -> None:
    """With ``absent`` empty, an item without metadata is its audio plus the empty text's vector."""
    encoder = Encoder.random(_tiny(absent="empty"), seed=0)
    embedding = encoder.encode_audio(_windows(SHORT))
    audio = encoder.project_audio(embedding.pooled)
    assert audio is not None
    expected = unit(audio + encoder.encode_text([""]))
    np.testing.assert_allclose(encoder.fuse(embedding, [""]).vectors, expected, **CLOSE)


def test_metadata_alone_without_metadata_is_no_vector() -> None:
    """An encoder that only reads gives NaN for an item without words, never zeros."""
    encoder = Encoder.random(_tiny(fusion="metadata"), seed=0)
    assert np.isnan(encoder.fuse(encoder.encode_audio(_windows(SHORT)), [""]).vectors).all()


def test_mid_fusion_hears_and_reads() -> None:
    """In mid fusion other words, another order of the sound, or no words change the item."""
    encoder = Encoder.random(_tiny(fusion="mid"), seed=0)
    shape = (1, 40, encoder.audio_dim)
    frames = np.random.default_rng(0).standard_normal(shape, np.float32)
    valid = np.ones((1, 40), np.bool_)
    forwards, backwards = (
        AudioEmbedding(f.mean(1), f, valid) for f in (frames, frames[:, ::-1].copy())
    )
    asked = ((forwards, "a"), (forwards, "b"), (forwards, ""), (backwards, "a"))
    vectors = [encoder.fuse(embedding, [text]).vectors for embedding, text in asked]
    for first, second in itertools.combinations(vectors, 2):
        assert not np.allclose(first, second, rtol=0, atol=1e-3)


@pytest.mark.parametrize("arrivals", [[1] * 1000, [1000], [7] * 142 + [6]])
def test_long_sequences_are_averaged_down(arrivals: list[int]) -> None:
    """However 1000 steps arrive, at most 192 frames are kept, each the mean of its steps."""
    steps = np.arange(1000, dtype=np.float32)[:, None]
    pooler = FramePooler(1)
    for part in np.split(steps, np.cumsum(arrivals)[:-1]):
        pooler.add(part)
    expected = steps[: 1000 // 8 * 8].reshape(-1, 8).mean(1, keepdims=True)
    np.testing.assert_allclose(pooler.frames(), expected)
    np.testing.assert_allclose(averaged_down(torch.from_numpy(steps)), expected)


@pytest.mark.parametrize(
    ("shape", "steps"),
    [
        ({"hop_samples": 160}, 63),
        ({"hop_samples": 800}, 13),
        ({"mel_bands": 40}, 32),
        ({"mel_bands": 256}, 32),
        ({"classifier": "fully_convolutional", "strides": (2, 2, 2, 1)}, 63),
        ({"classifier": "fully_convolutional", "strides": (2, 2, 1, 1)}, 125),
    ],
)
def test_released_variants_build_and_hear(shape: dict[str, Any], steps: int) -> None:
    """Every released hop, mel and stride variant hears ten seconds in its own number of steps."""
    audio = AudioConfig(width=0.1, head="classes", **shape)
    encoder = Encoder.random(_tiny(audio=audio), seed=0)
    window = np.zeros(WINDOW_SAMPLES, "f4")
    assert encoder.encode_windows([window])[0].steps == steps
    assert np.isfinite(encoder.fuse(encoder.encode_audio([window + 0.1]), ["a"]).vectors).all()


def test_a_clip_of_no_windows_is_an_error(tiny_encoder: Encoder) -> None:
    """No window is an error, not a vector of zeros."""
    with pytest.raises(ValueError, match="no windows"):
        tiny_encoder.encode_audio([])


def test_an_item_is_the_sum_of_its_parts(tiny_encoder: Encoder) -> None:
    """Late fusion adds the projections before they are normalised (arXiv 2406.15897)."""
    embedding = AudioEmbedding.stack(
        [tiny_encoder.encode_audio(_windows(name)) for name in (LONG, SHORT)]
    )
    fused = tiny_encoder.fuse(embedding, ["a drum", "a duck"])
    audio = tiny_encoder.project_audio(embedding.pooled)
    assert audio is not None
    expected = audio + tiny_encoder.encode_text(["a drum", "a duck"])
    np.testing.assert_allclose(fused.vectors * fused.norms[:, None], expected, **CLOSE)
    np.testing.assert_allclose(np.linalg.norm(fused.vectors, axis=1), 1, **CLOSE)


@pytest.mark.parametrize("text", ["", "  ", "?!"])
def test_an_item_without_words_is_its_audio(tiny_encoder: Encoder, text: str) -> None:
    """Missing metadata, or metadata that is punctuation only, leaves the projected audio alone."""
    embedding = tiny_encoder.encode_audio(_windows(SHORT))
    audio = tiny_encoder.project_audio(embedding.pooled)
    assert audio is not None
    expected = unit(audio)
    np.testing.assert_allclose(tiny_encoder.fuse(embedding, [text]).vectors, expected, **CLOSE)


@pytest.mark.parametrize("fusion", ["late", "mid", "audio", "metadata"])
@pytest.mark.parametrize("absent", ["audio", "empty"])
def test_an_item_does_not_depend_on_its_neighbours(fusion: str, absent: str) -> None:
    """Fused alone, in a batch, or in another order, an item has the same vector."""
    encoder = Encoder.random(_tiny(fusion=fusion, absent=absent), seed=0)
    sounds = [encoder.encode_audio(_windows(name)) for name in (LONG, SHORT, SHORT)]
    texts = ["a drum played for some time", "" if fusion != "metadata" else "b", "a duck"]
    together = encoder.fuse(AudioEmbedding.stack(sounds), texts).vectors
    alone = np.concatenate(
        [encoder.fuse(sound, [text]).vectors for sound, text in zip(sounds, texts, strict=True)]
    )
    swapped = encoder.fuse(AudioEmbedding.stack(sounds[::-1]), texts[::-1]).vectors[::-1]
    np.testing.assert_allclose(alone, together, **CLOSE)
    np.testing.assert_allclose(swapped, together, **CLOSE)


def test_fusing_leaves_the_stored_audio_alone(tiny_encoder: Encoder) -> None:
    """Fusing does not write into the audio vectors that it is given."""
    embedding = tiny_encoder.encode_audio(_windows(SHORT))
    before = embedding.pooled.copy()
    tiny_encoder.fuse(embedding, ["a duck"])
    assert np.array_equal(embedding.pooled, before)


@pytest.mark.parametrize("head", ["linear", "classes"])
def test_both_audio_heads_build_from_the_configuration(head: str) -> None:
    """Either head brings audio into the space of the words."""
    config = TINY.model_copy(update={"audio": AudioConfig(width=0.1, head=head)})
    encoder = Encoder.random(config, seed=0)
    projected = encoder.project_audio(np.ones((3, encoder.audio_dim), np.float32))
    assert projected is not None
    assert projected.shape == (3, config.dim)


def test_random_encoders_are_reproducible() -> None:
    """The same seed gives the same weights, and leaves the caller's random numbers alone."""
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second = (Encoder.random(TINY, seed=3).model.state_dict() for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_configuration_refuses_what_it_does_not_know() -> None:
    """A misspelt or future field is an error, not a silently different model."""
    with pytest.raises(ValueError, match="fusoin"):
        EncoderConfig.model_validate(TINY.model_dump() | {"fusoin": "late"})


def test_metadata_alone_runs_no_audio_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no item depends on its sound, training never runs the audio tower."""
    encoder = Encoder.random(_tiny(fusion="metadata"), seed=0)
    expected = _trained(encoder, [_windows(SHORT)], ["a drum"])

    def refuse(_mel: object) -> None:
        raise AssertionError

    monkeypatch.setattr(encoder.model.audio_tower, "frames", refuse)
    assert torch.equal(encoder.model([], words(encoder.metadata_processor(["a drum"]))), expected)
    assert np.array_equal(encoder.encode_metadata(["a drum"]), expected.detach())


ANCHORS = {
    "dim": TINY.text.bert["hidden_size"] + 527,
    "audio": AudioConfig(width=0.1, head="classes"),
    "text": TINY.text.model_copy(update={"head": "anchors"}),
}


@pytest.mark.parametrize(
    "shape", [{}, ANCHORS, {"fusion": "metadata"}, {"fusion": "mid"}, {"absent": "empty"}]
)
def test_half_precision_fuses_every_shape(shape: dict[str, Any]) -> None:
    """Under autocast, in which towers and heads differ in precision, items stay what they are."""
    encoder = Encoder.random(_tiny(**shape), seed=0)
    clips, texts = [_windows(SHORT), _windows(LONG)], ["a drum", "a duck"]
    with torch.no_grad():
        expected = _trained(encoder, clips, texts)
        with torch.autocast("cpu", torch.bfloat16):
            items = _trained(encoder, clips, texts).float()
    assert torch.cosine_similarity(items, expected).min() > 0.99


def test_no_two_widths_of_the_tests_encoder_are_equal(tiny_encoder: Encoder) -> None:
    """Where widths were equal, one taken for another would pass every test."""
    bert = TINY.text.bert
    widths = [TINY.dim, tiny_encoder.audio_dim, TINY.mid.width, TINY.mid.feedforward,
              bert["hidden_size"], bert["intermediate_size"]]  # fmt: skip
    assert len(set(widths)) == len(widths)
