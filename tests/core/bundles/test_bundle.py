"""A bundle is one immutable version: what is loaded is what was saved, or an error."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.loading import load_encoder
from audiofuse.core.bundles.manifest import (
    bundle_version,
    copy_query_tower,
    file_entries,
    verify_bundle,
)
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import BundleError, ConfigurationError
from audiofuse.core.model.config import TINY, EncoderConfig
from audiofuse.core.model.hybrid import HybridEncoder
from audiofuse.core.settings import Settings


@pytest.fixture(scope="module")
def saved(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of the tiny encoder."""
    folder = tmp_path_factory.mktemp("saved")
    return save_bundle(tiny_encoder, folder, "late", "# A card\n", {"mAP@10": 0.5})


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / saved.name))


def test_a_loaded_encoder_is_the_saved_one(tiny_encoder: Encoder, bundle: Path) -> None:
    """Every weight and every vector survives saving and loading, bit for bit."""
    loaded = load_bundle(bundle)
    saved = tiny_encoder.model.state_dict()
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, saved[name]), name
    assert np.array_equal(loaded.encode_text(["a dog"]), tiny_encoder.encode_text(["a dog"]))
    assert loaded.config == tiny_encoder.config


@pytest.mark.parametrize(
    "shape",
    [
        {"metadata": TINY.text, "fusion": "late"},
        {"metadata": TINY.text, "fusion": "mid"},
        {"fusion": "audio"},
        {"fusion": "metadata", "absent": "empty"},
    ],
)
def test_every_shape_survives(shape: dict[str, Any], tmp_path: Path) -> None:
    """An encoder of any shape is loaded as it was saved, and saved again as the same version."""
    encoder = Encoder.random(EncoderConfig.model_validate(TINY.model_dump() | shape), seed=0)
    bundle = save_bundle(encoder, tmp_path, "any", "")
    loaded = load_bundle(bundle)
    assert np.array_equal(loaded.encode_metadata(["a dog"]), encoder.encode_metadata(["a dog"]))
    assert save_bundle(loaded, tmp_path, "any", "") == bundle


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
    monkeypatch.setattr(HybridEncoder, "build", lambda *_: pytest.fail("an encoder was built"))
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
    manifest["files"] = {name: entry.model_dump() for name, entry in file_entries(bundle).items()}
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


def _bundle_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``audiofuse bundle ...`` where there is no torch."""
    script = "import sys; sys.modules['torch'] = None; import audiofuse.__main__"
    command = [sys.executable, "-c", script, "bundle", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_inspecting_tells_what_is_inside(tiny_encoder: Encoder, bundle: Path) -> None:
    """Version, sizes, learnt parameters, configuration and metrics are told, without torch."""
    facts = json.loads(_bundle_command("inspect", bundle, "--json").stdout)
    assert facts["version"] == bundle.name
    files = [path for path in bundle.rglob("*.*") if path.name != "manifest.json"]
    assert facts["files"] == {
        path.relative_to(bundle).as_posix(): path.stat().st_size for path in files
    }
    assert facts["size"] == sum(facts["files"].values())
    for part, count in facts["parameters"].items():
        learnt = getattr(tiny_encoder.model, part).parameters()
        assert count == sum(parameter.numel() for parameter in learnt), part
    assert set(facts["parameters"]) == {"audio_tower", "audio_head", "text_tower"}
    assert facts["config"]["dim"] == tiny_encoder.dim
    assert facts["metrics"] == {"mAP@10": 0.5}
    shown = _bundle_command("inspect", bundle).stdout
    assert all(text in shown for text in (bundle.name, "query/onnx/model.onnx", "mAP@10"))


def test_verifying_is_one_line_and_an_exit_code(bundle: Path) -> None:
    """A whole bundle is 0, a damaged one is 2 with the file that differs, both without torch."""
    whole = _bundle_command("verify", bundle)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout.startswith(f"{bundle.name}: ")
    assert whole.stdout.count("\n") == 1
    (bundle / "query" / "tokenizer.json").write_text("{}")
    damaged = _bundle_command("verify", bundle)
    assert (damaged.returncode, damaged.stdout) == (2, "")
    assert "query/tokenizer.json differs" in damaged.stderr
    assert "Traceback" not in damaged.stderr


def test_the_query_tower_is_copied_out_of_a_whole_bundle(bundle: Path, tmp_path: Path) -> None:
    """Its files come out as they are; a folder that exists is left alone, damage is refused."""
    out = tmp_path / "query tower"
    done = _bundle_command("export-query", bundle, "--out", out)
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    assert file_entries(out) == file_entries(bundle / "query")
    with pytest.raises(ConfigurationError, match="exists already"):
        copy_query_tower(bundle, out)
    _flip_a_byte(bundle)
    with pytest.raises(BundleError, match=r"model\.safetensors differs"):
        copy_query_tower(bundle, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_bundle_from_before_has_no_query_tower_to_copy(bundle: Path, tmp_path: Path) -> None:
    """A bundle that was saved without one still loads, and says what is missing when asked."""
    shutil.rmtree(bundle / "query")
    _edit_manifest(lambda manifest: manifest.update(files=_without_query(manifest)))(bundle)
    load_bundle(bundle)
    with pytest.raises(BundleError, match="has no query tower"):
        copy_query_tower(bundle, tmp_path / "out")


def _without_query(manifest: dict[str, Any]) -> dict[str, object]:
    return {name: entry for name, entry in manifest["files"].items() if "query/" not in name}
