"""A bundle is one immutable version: what is loaded is what was saved, or an error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.bundle import (
    _entries,
    bundle_version,
    load_bundle,
    load_encoder,
    save_bundle,
    verify_bundle,
)
from core.encoder import Encoder
from core.errors import BundleError, ConfigurationError
from core.settings import Settings


@pytest.fixture
def bundle(tiny_encoder: Encoder, tmp_path: Path) -> Path:
    """Return a fresh bundle of the tiny encoder."""
    return save_bundle(tiny_encoder, tmp_path, "late", "# A card\n", {"mAP@10": 0.5})


def test_a_loaded_encoder_is_the_saved_one(tiny_encoder: Encoder, bundle: Path) -> None:
    """Every weight and every vector survives saving and loading, bit for bit."""
    loaded = load_bundle(bundle)
    saved = tiny_encoder.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.state_dict().items())
    assert torch.equal(loaded.read(["a dog"]), tiny_encoder.read(["a dog"]))
    assert loaded.config == tiny_encoder.config


def test_the_version_is_the_name_and_a_hash(bundle: Path) -> None:
    """The folder is named by its version, which is derived from the manifest."""
    assert bundle.name == bundle_version(bundle)
    assert bundle.name.startswith("late-")


def test_saving_again_changes_nothing(bundle: Path, tmp_path: Path) -> None:
    """What was loaded from a bundle is saved as the very same version."""
    again = save_bundle(load_bundle(bundle), tmp_path, "late", "# A card\n", {"mAP@10": 0.5})
    assert again == bundle
    assert [path.name for path in tmp_path.iterdir()] == [bundle.name]


def test_other_weights_are_another_version(tiny_encoder: Encoder, bundle: Path) -> None:
    """A different seed, and nothing else, gives a different version."""
    other = Encoder.random(tiny_encoder.config, seed=1)
    assert save_bundle(other, bundle.parent, "late", "# A card\n", {"mAP@10": 0.5}) != bundle


def _flip_a_byte(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _edit_manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        manifest = json.loads((bundle / "manifest.json").read_text())
        change(manifest)
        (bundle / "manifest.json").write_text(json.dumps(manifest))

    return edit


DAMAGES = {
    "flipped byte": (_flip_a_byte, "model.safetensors differs"),
    "missing file": (lambda b: (b / "config.json").unlink(), "lacks config.json"),
    "foreign pickle": (lambda b: (b / "x.pkl").write_bytes(b"cos\nsystem\n"), "x.pkl"),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "manifest.json"),
    "no folder": (shutil.rmtree, "manifest.json"),
    "manifest not JSON": (lambda b: (b / "manifest.json").write_text("{"), "no bundle manifest"),
    "future format": (_edit_manifest(lambda m: m.update(format=2)), "format 2"),
    "path outside": (
        _edit_manifest(lambda m: m["files"].update({"../x": {"size": 1, "sha256": ""}})),
        "outside itself: ../x",
    ),
    "absolute path": (
        _edit_manifest(lambda m: m["files"].update({"/etc/passwd": {"size": 1, "sha256": ""}})),
        "outside itself: /etc/passwd",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_refused_before_anything_is_built(
    bundle: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each damage is one clear error that names the file, and no model is built from the rest."""
    apply, message = DAMAGES[damage]
    apply(bundle)
    monkeypatch.setattr(Encoder, "build", lambda *_: pytest.fail("an encoder was built"))
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def test_a_link_out_of_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    """A file that is a link is no file of the bundle, though its content matches."""
    target = tmp_path / "elsewhere.json"
    shutil.move(bundle / "config.json", target)
    (bundle / "config.json").symlink_to(target)
    with pytest.raises(BundleError, match=r"outside itself: config\.json"):
        verify_bundle(bundle)


def test_weights_that_do_not_fit_are_refused(bundle: Path) -> None:
    """A configuration that does not match the weights is an error that names the bundle."""
    config = json.loads((bundle / "config.json").read_text())
    config["dim"] = 8
    (bundle / "config.json").write_text(json.dumps(config))
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").unlink()
    manifest["files"] = {name: entry.model_dump() for name, entry in _entries(bundle).items()}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="does not describe an encoder"):
        load_bundle(bundle)


def test_no_bundle_set_is_a_configuration_error() -> None:
    """Without AUDIOFUSE_ENCODER nothing is loaded, and the message names it."""
    with pytest.raises(ConfigurationError, match="AUDIOFUSE_ENCODER"):
        load_encoder(Settings())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_asked_for_and_absent_is_refused(bundle: Path) -> None:
    """A device of cuda never falls back to the CPU."""
    with pytest.raises(ConfigurationError, match="no usable GPU"):
        load_encoder(Settings(encoder=bundle, device="cuda"))
