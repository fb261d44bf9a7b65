"""``audiofuse-train paper`` from the tables of ClothoV2 and AudioCaps to the table of claims."""

import json
from pathlib import Path

import pytest
from paper_data import SHARED_NAME, make_audiocaps, make_clotho, make_towers
from typer.testing import CliRunner

from audiofuse.trainer.cli import cli

SMALL = ("--epochs", "1", "--no-every-caption", "--batch-size", "4", "--crop-s", "1",
         "--mask-bands", "8", "--mask-frames", "8", "--seeds", "1")  # fmt: skip
CELLS = ("audio-real", "late-*-shared-real", "metadata-os-shared-real", "mid-os-separate-real",
         "late-os-shared-templates", "late-os+cs-shared-real-both")  # fmt: skip


def test_the_real_tables_run_to_the_claims(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both data sets are prepared, cells are trained and tested on each, and claims are told."""
    clotho = make_clotho(shared / "data/text", tmp_path / "clotho", 4)
    audiocaps = make_audiocaps(shared / "data/text", tmp_path / "audiocaps", 6)
    audio, text = make_towers(tmp_path / "towers")
    chosen = [word for cell in CELLS for word in ("--cells", cell)]
    run = tmp_path / "run"
    done = CliRunner().invoke(
        cli,
        ["paper", str(clotho), str(audiocaps), "--run", str(run), "--audio", str(audio),
         "--text", str(text), "--cache", str(tmp_path / "cache"), *SMALL, *chosen],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert SHARED_NAME in {path.name for path in (clotho / "validation").iterdir()}
    assert "in several of the published splits" in caplog.text
    told = json.loads((run / "results.json").read_text())
    tested = {(cell["fusion"], cell["kind"], cell["both"], cell["collection"])
              for cell in told["cells"]}  # fmt: skip
    assert tested == {
        *(("audio", None, False, name) for name in ("clotho", "audiocaps")),
        *(("late", kind, False, "clotho") for kind in ("os", "fs")),
        ("late", "cs", False, "audiocaps"),
        *((fusion, "os", False, "clotho") for fusion in ("metadata", "mid")),
        *(("late", "os+cs", True, name) for name in ("clotho", "audiocaps")),
    }
    assert told["left out"]["audiocaps fs"]  # one caption a clip to learn from, no other to carry
    measured = {(c["collection"], c["statement"]) for c in told["claims"] if c["differences"]}
    assert measured >= {
        ("clotho", "keywords, late, over audio only"),
        ("clotho", "descriptions, late, over audio only"),
        ("clotho", "real captions over templates, late"),
        ("clotho", "both data sets over its own, late"),
        ("audiocaps", "closed-set tags, late, over audio only"),
        ("audiocaps", "its own data set over both, late"),
    }
    assert all(c["sounds"] is not None for c in told["claims"] if c["differences"])
    assert (
        "| clotho | keywords, late, over audio only | +2.36 |" in (run / "results.md").read_text()
    )
