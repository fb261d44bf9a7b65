"""What decides a vector before there are tensors is the bundle's, and nobody reuses across it."""

import json
from pathlib import Path

import numpy as np
import pytest

from audiofuse.core.audio import recording
from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_S, WINDOW_SAMPLES
from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.manifest import file_entries
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.processing import AudioProcessor
from audiofuse.core.errors import BundleError
from audiofuse.core.model.config import TINY, Preprocessing

SECOND = np.linspace(-1, 1, SAMPLE_RATE, dtype=np.float32)


def _config(bundle: Path, change: dict[str, object] | None) -> None:
    """Write another preprocessing, or none, into a bundle, as if it had been saved so."""
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    del config["preprocessing"]
    path.write_text(json.dumps(config | ({"preprocessing": change} if change else {})))
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").unlink()
    manifest["files"] = {name: each.model_dump() for name, each in file_entries(bundle).items()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def _encoder(**preprocessing: object) -> Encoder:
    made_with = Preprocessing.model_validate(preprocessing)
    return Encoder.random(TINY.model_copy(update={"preprocessing": made_with}), seed=0)


def test_windows_become_a_padded_batch() -> None:
    """Each row is a window and zeros up to whole seconds of the longest, its own length beside."""
    waveforms, heard = AudioProcessor(Preprocessing())([SECOND[:1], SECOND, SECOND[:100]])
    assert (waveforms.shape, waveforms.dtype, heard.dtype) == ((3, SAMPLE_RATE), "f4", "i4")
    assert heard.tolist() == [1, SAMPLE_RATE, 100]
    np.testing.assert_array_equal(waveforms[2], np.pad(SECOND[:100], (0, SAMPLE_RATE - 100)))


@pytest.mark.parametrize(
    ("samples", "heard", "padded"),
    [
        (SAMPLE_RATE, 1.5, 1.5),
        (WINDOW_SAMPLES - SAMPLE_RATE // 4, 10.0, 10.0),
        (WINDOW_SAMPLES, 10.0, 10.0),
    ],
)
def test_silence_is_appended_where_there_is_room(samples: int, heard: float, padded: float) -> None:
    """Half a second of silence is heard after a sound, or what its last window has room for."""
    processor = AudioProcessor(Preprocessing(silence_s=0.5, padding_s=0.5))
    window = np.ones(samples, np.float32)
    waveforms, lengths = processor([window])
    assert lengths.tolist() == [heard * SAMPLE_RATE]
    assert waveforms.shape == (1, processor.padded_length(window)) == (1, padded * SAMPLE_RATE)
    assert waveforms.sum() == samples


def test_appended_silence_is_as_if_it_were_recorded() -> None:
    """An encoder that appends silence gives the vector of the sound that ends in it."""
    ends_in_silence = np.pad(SECOND, (0, SAMPLE_RATE // 2))
    expected = _encoder().encode_audio([ends_in_silence]).pooled
    heard = _encoder(silence_s=0.5).encode_audio([SECOND]).pooled
    np.testing.assert_allclose(heard, expected, rtol=1e-6)
    assert not np.allclose(_encoder().encode_audio([SECOND]).pooled, expected, atol=1e-4)


def test_a_bundle_keeps_what_it_was_made_with(tmp_path: Path) -> None:
    """A saved encoder pads when loaded as it did before."""
    encoder = _encoder(silence_s=0.5, padding_s=2)
    loaded = load_bundle(save_bundle(encoder, tmp_path, "silence", ""))
    assert loaded.config == encoder.config
    expected = encoder.encode_audio([SECOND]).pooled
    assert np.array_equal(loaded.encode_audio([SECOND]).pooled, expected)


def test_a_bundle_of_before_means_what_it_was_made_with(tmp_path: Path) -> None:
    """One that says nothing of preprocessing is loaded as all were made then."""
    encoder = _encoder()
    bundle_of_now = save_bundle(encoder, tmp_path, "new", "")
    bundle = save_bundle(encoder, tmp_path, "old", "")
    _config(bundle, None)
    loaded = load_bundle(bundle)
    assert loaded.config.preprocessing == Preprocessing(
        sample_rate=32_000, window_s=10, padding_s=1.0, silence_s=0.0, silent_below_db=-80
    )
    assert loaded.audio_fingerprint == load_bundle(bundle_of_now).audio_fingerprint


@pytest.mark.parametrize(
    "change", [{"window_s": 5}, {"text": "as it is"}, {"silent_below_db": -60}, {"resampler": "x"}]
)
def test_a_bundle_made_in_another_way_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    """What this version cannot do as the bundle says is an error that names it."""
    bundle = save_bundle(_encoder(), tmp_path, "future", "")
    _config(bundle, change)
    with pytest.raises(BundleError, match=f"preprocessing.{next(iter(change))}"):
        load_bundle(bundle)


@pytest.mark.parametrize("change", [{"silence_s": 0.5}, {"padding_s": 0.5}])
def test_vectors_of_other_preprocessing_are_not_reused(
    change: dict[str, object], tmp_path: Path
) -> None:
    """Encoders of the same weights that pad differently have different audio fingerprints."""
    own, other = (
        load_bundle(save_bundle(each, tmp_path, name, ""))
        for name, each in (("own", _encoder()), ("other", _encoder(**change)))
    )
    assert own.audio_fingerprint != other.audio_fingerprint


def test_the_configuration_tells_what_decoding_does() -> None:
    """Window, rate and threshold that bundles name are those by which sounds are decoded."""
    told = Preprocessing()
    assert (told.sample_rate, told.window_s) == (SAMPLE_RATE, WINDOW_S)
    assert pytest.approx(10 ** (told.silent_below_db / 20)) == recording.SILENCE_PEAK
