"""Which library runs a bundle, and what that changes nothing of."""

import json
from pathlib import Path

import numpy as np
import pytest
from bundles import saved_bundle

from audiofuse.core import cores
from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.loading import load_folder
from audiofuse.core.bundles.manifest import Manifest, file_entries, verify_bundle
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import BundleError, ConfigurationError
from audiofuse.core.model.config import TINY
from audiofuse.core.settings import Settings

SECOND = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) / 10


@pytest.fixture
def bundle(tiny_encoder: Encoder, tmp_path: Path) -> Path:
    """Return the tiny encoder's bundle."""
    return saved_bundle(tiny_encoder, tmp_path, "tiny", "")


def _without_graphs(bundle: Path) -> Path:
    """Make a bundle one of before there were graphs."""
    for graph in bundle.glob("*.onnx"):
        graph.unlink()
    _sign(bundle)
    return bundle


def _sign(bundle: Path) -> None:
    path = bundle / "manifest.json"
    manifest = Manifest.model_validate_json(path.read_text())
    path.unlink()
    files = {"files": file_entries(bundle)}
    path.write_text(manifest.model_copy(update=files).model_dump_json())


def test_a_bundle_of_before_is_run_by_pytorch(bundle: Path) -> None:
    """Without graphs a bundle loads as it did; it hears the same, so that vectors are reused."""
    new = load_folder(Settings(device="cpu"), bundle)
    old = load_folder(Settings(device="cpu"), _without_graphs(bundle))
    assert (new.runtime.name, old.runtime.name) == ("onnxruntime", "torch")
    assert new.audio_fingerprint == old.audio_fingerprint
    found, expected = (each.encode_audio([SECOND]).pooled for each in (new, old))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_without_a_driver_nobody_asks_for_a_gpu(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no maker's driver is, "auto" is the CPU at once."""
    monkeypatch.setattr(cores, "ROCM_DEVICE", Path("there-is-no-such-device"))
    monkeypatch.setattr(cores, "CUDA_DRIVER", "libthere-is-no-such-library.so.1")
    assert load_folder(Settings(device="auto"), bundle).runtime.name == "onnxruntime"


@pytest.mark.parametrize(
    ("driver", "device"), [("libc.so.6", "none"), ("libnone.so.1", "a-device")]
)
def test_either_makers_driver_shows_that_a_gpu_may_be_here(
    driver: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With NVIDIA's driver or AMD's device PyTorch is asked."""
    (tmp_path / "a-device").touch()
    monkeypatch.setattr(cores, "CUDA_DRIVER", driver)
    monkeypatch.setattr(cores, "ROCM_DEVICE", tmp_path / device)
    assert cores.may_have_gpu("auto")
    assert not cores.may_have_gpu("cpu")


def test_half_precision_on_a_cpu_is_refused(bundle: Path) -> None:
    """What a GPU would compute in, no CPU does in float32 unseen."""
    with pytest.raises(ConfigurationError, match="AUDIOFUSE_PRECISION is float16"):
        load_folder(Settings(device="cpu", precision="float16"), bundle)


def test_graphs_hold_no_weights(bundle: Path) -> None:
    """Beside the weights a bundle grows by the graphs alone, whatever the size of its towers."""
    audio = TINY.audio.model_copy(update={"width": 0.4})
    wider = Encoder.random(TINY.model_copy(update={"audio": audio}), seed=0)
    wide = save_bundle(wider, bundle.parent, "wide", "")
    for graph in bundle.glob("*.onnx"):
        assert (wide / graph.name).stat().st_size < 1.3 * graph.stat().st_size


def test_the_fingerprint_is_of_the_audio_tower_and_nothing_else(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    """Another text tower leaves the fingerprint, one other weight of the audio tower does not."""
    other = Encoder.random(tiny_encoder.config, seed=1)
    before = _fingerprint(other, tmp_path)
    other.model.audio_tower.load_state_dict(tiny_encoder.model.audio_tower.state_dict())
    assert _fingerprint(other, tmp_path) == _fingerprint(tiny_encoder, tmp_path) != before
    next(other.model.audio_tower.parameters()).data.view(-1)[0] += 1e-6
    assert _fingerprint(other, tmp_path) != _fingerprint(tiny_encoder, tmp_path)


def _fingerprint(encoder: Encoder, folder: Path) -> str:
    bundle = save_bundle(encoder, folder, "any", "")
    return load_folder(Settings(device="cpu"), bundle).audio_fingerprint


@pytest.mark.parametrize("file", ["audio_tower.onnx", "tokenizer/tokenizer.json", "config.json"])
def test_what_is_no_encoder_is_refused(bundle: Path, file: str) -> None:
    """A bundle that is whole, but holds something else, is an error that names it."""
    (bundle / file).write_text(json.dumps({"something": "else"}))
    _sign(bundle)
    verify_bundle(bundle)
    with pytest.raises(BundleError, match="does not describe an encoder"):
        load_folder(Settings(device="cpu"), bundle)
