"""The commands about moments."""

import json
from pathlib import Path

from bundles import saved_bundle
from made_sounds import noise, tone, write_wav
from typer.testing import CliRunner

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.workers.commands.main import cli


def test_what_is_composed_is_evaluated(tmp_path: Path, tiny_encoder: Encoder) -> None:
    """Recordings made of clips are scored by items and by moments, as JSON and as tables."""
    bundle = saved_bundle(tiny_encoder, tmp_path, "tiny", "A card.")
    rows = []
    for label, sound in {"rain": noise(2), "dog": tone(1), "cat": tone(1, 900)}.items():
        write_wav(tmp_path / f"{label}.wav", sound)
        rows.append(json.dumps({"audio": f"{label}.wav", "labels": [label]}))
    (tmp_path / "clips.jsonl").write_text("\n".join(rows))
    out = tmp_path / "out"
    make = ["compose", str(tmp_path / "clips.jsonl"), "--out", str(out), "--background", "rain"]
    make += ["--recordings", "2", "--duration", "14", "--events", "1", "--kinds", "2"]
    made = CliRunner().invoke(cli, make)
    assert made.stdout.split()[-1] == str(out / "moments.jsonl")
    assert "is not empty" in str(CliRunner().invoke(cli, make).exception)
    command = ["evaluate", "--moments", str(out / "moments.jsonl"), "--encoder", str(bundle)]
    told = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    assert (told["recordings"], told["queries"], told["window_s"]) == (2, 2, 5.0)
    assert set(told["metrics"]) == {"items alone", "moments"}
    assert set(told["metrics"]["moments"]) > {"mAP@10", "overlap@1", "R1@0.5", "R1@0.7"}
    assert "moments - items alone" in told["mAP@10 intervals"]
    (out / "recording-002.wav").unlink()
    table = CliRunner().invoke(cli, [*command, "--window", "10", "--hop", "5", "--blank", "1"])
    assert "windows of 10 s every 5 s" in table.stdout
    assert "left out: recording-002.wav" in table.stderr
    assert "1 of 2 queries are asked" in table.stderr
