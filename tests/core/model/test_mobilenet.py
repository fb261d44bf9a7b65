"""The audio tower equals EfficientAT's at every width and loads its checkpoints unchanged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from audiofuse.core.encoder.pretrained import load_checkpoint
from audiofuse.core.model.frontend import MelFrontEnd
from audiofuse.core.model.mobilenet import MobileNet

WIDTHS = {"mn01": 0.1, "mn04": 0.4, "mn05": 0.5, "mn10": 1.0, "mn20": 2.0, "mn30": 3.0, "mn40": 4.0}


ROUNDING = 1e-5  # of the largest value: some 50 layers that each round three times, by 6e-8


def _fixture(shared: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state dict and the expected outputs of one parity fixture."""
    slim = torch.load(shared / "parity" / "efficientat_parity_mn01.pt", weights_only=True)
    full: dict[str, Any] = torch.load(
        shared / "parity" / "efficientat_parity.pt", weights_only=True
    )
    return {
        "mn01": (slim["state_dict"], slim),
        "mn04": (full["mn04"]["state_dict"], full["mn04"]["out_odd"]),
        "mn10": (full["state_dict"], full["out_odd"]),
        "mn10 10 s": (full["state_dict"], full["out_10s"]),
    }[name]


@pytest.mark.parametrize("name", ["mn01", "mn04", "mn10", "mn10 10 s"])
def test_equals_the_reference_tower(shared: Path, name: str) -> None:
    """Of the reference's mel picture the tower makes EfficientAT's features and logits.

    Computed in float64, so that this CPU's rounding is no part of it: equal to 1e-10 where the
    reference was computed so too, else to what float32 rounded there.
    """
    state, expected = _fixture(shared, name)
    tower = MobileNet(WIDTHS[name[:4]]).eval()
    tower.load_state_dict(state)
    tower.double()
    with torch.inference_mode():
        mel = expected["mel"].double()
        pooled = tower.feature_map(mel).mean(dim=(2, 3))
        sequence = tower.frames(mel)
        logits = tower.classify(pooled)
    torch.testing.assert_close(sequence.mean(1), pooled, rtol=1e-10, atol=1e-10)
    for what, made in (("features", pooled), ("logits", logits)):
        exact = f"{what}_f64" in expected
        reference = expected[f"{what}_f64" if exact else what].reshape(made.shape).double()
        atol = 1e-10 if exact else ROUNDING * reference.abs().max().item()
        torch.testing.assert_close(made, reference, rtol=0, atol=atol)


@pytest.mark.parametrize("name", WIDTHS)
def test_has_the_parameters_of_the_release(shared: Path, name: str) -> None:
    """Every width has exactly the parameter names and shapes of the released checkpoint."""
    released = json.loads((shared / "parity" / "mn_state_dict_shapes.json").read_text())[name]
    with torch.device("meta"):
        tower = MobileNet(WIDTHS[name])
    assert {key: list(value.shape) for key, value in tower.state_dict().items()} == released


def test_a_real_checkpoint_recognises_real_sounds(shared: Path) -> None:
    """The released mn04 hears a rooster crow, in a file whose name does not say so."""
    from audiofuse.core.audio.recording import open_recording
    from audiofuse.core.encoder.pretrained import read_class_names

    tower = MobileNet(0.4).eval()
    tower.load_state_dict(load_checkpoint(shared / "weights" / "mn04_as_mAP_432.pt"))
    names = read_class_names(shared / "data" / "text" / "audioset_class_labels_indices.csv")
    sound = Path(__file__).parents[3] / "examples/sounds/animals/field-recording-07.flac"
    with open_recording(sound, max_duration_s=10) as recording, torch.inference_mode():
        window = torch.from_numpy(next(recording.windows()))
        logits = tower.classify(tower.frames(MelFrontEnd()(window[None])).mean(1))[0]
    assert "Crowing, cock-a-doodle-doo" in [names[i] for i in logits.topk(5).indices]


def test_a_checkpoint_of_another_width_is_refused() -> None:
    """Loading is strict: weights of another width raise instead of half fitting."""
    with pytest.raises(RuntimeError, match="size mismatch"):
        MobileNet(0.4).load_state_dict(MobileNet(0.1).state_dict())
