"""ONNX Runtime gives what PyTorch gives: every vector, of every kind of encoder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.loading import load_folder
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import prepare
from audiofuse.core.encoder.processing import SavedTextProcessor, Tokens
from audiofuse.core.errors import Rejected
from audiofuse.core.model.config import TINY, EncoderConfig
from audiofuse.core.settings import Settings

# Both round at every layer in float32, in an order that library, CPU and number of threads choose:
# PyTorch's audio tower differs from itself by 5e-7 of the largest number with one thread and two,
# and by 1e-6 from float64's. The logarithm of a nearly silent mel band beside a loud one adds to
# that. Seen were 6e-6 in items of 53 real sounds, and 3e-6 of the largest number in random towers:
# the bound is what a search may not notice, and leaves other CPUs a factor of ten.
WITHIN = 1e-4  # of the largest number in a vector, at least of 1
COSINE = 0.999999
OWN_TOWER = TINY.text.model_copy(update={"pooling": "mean", "max_tokens": 9})
KINDS = {
    "late": {},
    "late, of empty texts": {"absent": "empty"},
    "late, two towers": {"metadata": OWN_TOWER},
    "mid": {"fusion": "mid"},
    "mid, two towers": {"fusion": "mid", "metadata": OWN_TOWER},
    "audio": {"fusion": "audio"},
    "metadata": {"fusion": "metadata"},
    "classes": {
        "audio": TINY.audio.model_copy(update={"head": "classes"}),
        "text": TINY.text.model_copy(update={"head": "anchors"}),
        "dim": 12 + 527,
    },
    "another picture": {
        "audio": TINY.audio.model_copy(
            update={"mel_bands": 40, "hop_samples": 800, "classifier": "fully_convolutional"}
        )
    },
}
TEXTS = ["", "a dog barks", "Rain on a tin roof, then thunder; far away a church bell rings: 12!"]


@dataclass(frozen=True)
class Pair:
    """One encoder, run in two ways."""

    torch: Encoder
    onnx: Encoder


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return a tiny encoder of each kind."""
    config = EncoderConfig.model_validate(TINY.model_dump() | KINDS[request.param])
    encoder = Encoder.random(config, seed=3)
    bundle = save_bundle(encoder, tmp_path_factory.mktemp("kinds"), "kind", "")
    return Pair(encoder, load_folder(Settings(device="cpu"), bundle))


def _noise(*seconds: float) -> list[Samples]:
    generator = np.random.default_rng(int(10 * sum(seconds)))
    return [
        (generator.standard_normal(round(each * SAMPLE_RATE)) * 0.1).astype(np.float32)
        for each in seconds
    ]


def _assert_same(found: Floats, expected: Floats) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    largest = max(1.0, float(np.abs(expected).max()))
    assert np.abs(found - expected).max() <= WITHIN * largest
    for one, other in zip(found.astype(np.float64), expected.astype(np.float64), strict=True):
        length = np.linalg.norm(one) * np.linalg.norm(other)
        assert length == 0 or one @ other / length >= COSINE


def test_it_computes_without_pytorch(pair: Pair) -> None:
    """On a CPU a saved encoder is run by ONNX Runtime, and says so."""
    assert (pair.onnx.runtime.name, pair.onnx.device) == ("onnxruntime", "cpu")
    assert pair.onnx.audio_dim == pair.torch.audio_dim
    with pytest.raises(TypeError, match="no PyTorch model"):
        _ = pair.onnx.model


def test_windows_are_embedded_as_pytorch_does(pair: Pair) -> None:
    """Windows of mixed lengths in one batch, each with its own steps; single ones alike."""
    for batch in (_noise(0.7, 0.05, 1.0), _noise(10, 9.5), _noise(3.2)):
        found, expected = (each.encode_windows(batch) for each in (pair.onnx, pair.torch))
        assert [each.steps for each in found] == [each.steps for each in expected]
        _assert_same(*(np.stack([w.total for w in each]) for each in (found, expected)))
        for one, other in zip(found, expected, strict=True):
            assert (one.frames is None) == (other.frames is None)
            if one.frames is not None and other.frames is not None:
                _assert_same(one.frames, other.frames)


def test_texts_are_embedded_as_pytorch_does(pair: Pair) -> None:
    """Texts of mixed lengths in one batch, none and too long ones among them."""
    _assert_same(pair.onnx.encode_text(TEXTS), pair.torch.encode_text(TEXTS))
    if pair.torch.config.places_metadata:
        _assert_same(pair.onnx.encode_metadata(TEXTS), pair.torch.encode_metadata(TEXTS))


def test_items_are_fused_as_pytorch_does(pair: Pair) -> None:
    """Sounds of mixed lengths with their texts, and the audio part of sums."""
    clips = [_noise(10, 10, 3), _noise(0.4), _noise(7)]
    sounds = AudioEmbedding.stack([pair.torch.encode_audio(clip) for clip in clips])
    found, expected = (each.fuse(sounds, TEXTS) for each in (pair.onnx, pair.torch))
    np.testing.assert_array_equal(np.isnan(found.vectors), np.isnan(expected.vectors))
    _assert_same(np.nan_to_num(found.vectors), np.nan_to_num(expected.vectors))
    np.testing.assert_allclose(found.norms, expected.norms, rtol=WITHIN, atol=WITHIN)
    parts = [each.project_audio(sounds.pooled) for each in (pair.onnx, pair.torch)]
    assert (parts[0] is None) == (parts[1] is None) == (pair.torch.config.fusion == "mid")
    if parts[0] is not None and parts[1] is not None:
        _assert_same(parts[0], parts[1])


def test_no_tower_reads_for_sounds_without_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is added for no metadata, only texts that say something are read."""
    bundle = save_bundle(Encoder.random(TINY, seed=3), tmp_path, "late", "")
    encoder = load_folder(Settings(device="cpu"), bundle)
    read: list[int] = []
    tower = encoder.runtime.encode_metadata

    def counted(tokens: Tokens) -> Floats:
        read.append(len(tokens.ids))
        return tower(tokens)

    monkeypatch.setattr(encoder.runtime, "encode_metadata", counted)
    audio = AudioEmbedding(np.ones((3, encoder.audio_dim), np.float32))
    encoder.fuse(audio, TEXTS)
    encoder.fuse(audio, ["", "...", ""])
    assert read == [2]


@pytest.fixture(scope="module")
def shipped(default_bundle: Path) -> Pair:
    """Return the encoder that the product ships, as each of both would be run."""
    torch = prepare(load_bundle(default_bundle))
    return Pair(torch, load_folder(Settings(device="cpu"), default_bundle))


def _real_sounds(shared: Path) -> Iterator[tuple[str, list[Samples]]]:
    paths = sorted(p for p in (shared / "data").rglob("*") if p.suffix in {".ogg", ".wav"})
    for path in paths[::60]:
        try:
            with open_recording(path, max_duration_s=60) as recording:
                yield path.stem, list(recording.windows())
        except Rejected:  # silent, as some of them are
            continue


def test_real_sounds_have_the_vectors_that_pytorch_gives(shipped: Pair, shared: Path) -> None:
    """Of real sounds the shipped encoder's audio vectors and items are within the bounds."""
    sounds = dict(_real_sounds(shared))
    assert len(sounds) > 10
    found, expected = (
        AudioEmbedding.stack([each.encode_audio(windows) for windows in sounds.values()])
        for each in (shipped.onnx, shipped.torch)
    )
    _assert_same(found.pooled, expected.pooled)
    texts = [name.replace("_", " ") if row % 2 else "" for row, name in enumerate(sounds)]
    items = shipped.onnx.fuse(found, texts), shipped.torch.fuse(expected, texts)
    _assert_same(items[0].vectors, items[1].vectors)


def test_a_saved_tokenizer_reads_as_transformers_does(default_bundle: Path) -> None:
    """Every text has the same numbers, mask and padding, whatever is in it."""
    processor = load_bundle(default_bundle).text_processor
    saved = SavedTextProcessor(default_bundle / "tokenizer", processor.max_tokens)
    texts = [
        *TEXTS,
        "ΟΔΟΣ Straße naïve",
        "[MASK] [SEP] dog",
        "犬が吠える",
        "\x00\t\n",
        "bark " * 300,
    ]
    for batch in (texts, texts[:1], *([text] for text in texts)):
        for found, expected in zip(saved(batch), processor(batch), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
