"""The command line: clear errors, exit codes that scripts can use, no secrets."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from core.encoder import Encoder

SOUNDS = Path(__file__).parent.parent / "examples" / "sounds"


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers.cli", *arguments],
        env=os.environ | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", ""], "no words"),
        (["search", "?!"], "no words"),
        (["search", "a dog", "--frobnicate"], "No such option"),
        (["search", "a dog", "--top", "0"], "--top"),
        (["frobnicate"], "No such command"),
        (["up", "--bucket", "/does/not/exist"], "/does/not/exist"),
        (["up", "--bucket", "s3://"], "names no bucket"),
        (["evaluate", "/does/not/exist.jsonl"], "/does/not/exist.jsonl"),
        (["intake", "sqs"], "AUDIOFUSE_BUCKET"),
        (["serve"], "AUDIOFUSE_ENCODER"),
        (["serve-index"], "AUDIOFUSE_QDRANT_API_KEY"),
    ],
)
def test_wrong_usage_is_one_clear_error(arguments: list[str], message: str) -> None:
    """What the user can mend is said in words, without a traceback, and exits 2."""
    done = _run(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_setting_is_named() -> None:
    """A setting that cannot be read is named by its variable, and exits 2."""
    done = _run("settings", AUDIOFUSE_MAX_DURATION_S="long")
    assert done.returncode == 2
    assert "AUDIOFUSE_MAX_DURATION_S" in done.stderr


@pytest.mark.parametrize("command", [["search", "a dog"], ["status"]])
def test_nobody_to_ask_is_a_failure(command: list[str]) -> None:
    """Without a deployment a question fails with exit code 1 and says what was asked for."""
    away = {
        "AUDIOFUSE_SEARCH_URL": "http://127.0.0.1:1",
        "AUDIOFUSE_BROKER_URL": "redis://127.0.0.1:1",
        "AUDIOFUSE_QDRANT_URL": "http://127.0.0.1:1",
    }
    done = _run(*command, **away)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_hide_secrets_and_name_sources(tmp_path: Path) -> None:
    """Each setting shows its source; what is secret is never printed."""
    (tmp_path / "deployment.env").write_text("AUDIOFUSE_BROKER_URL=redis://:hunter2@host/0\n")
    done = _run("settings", "--json", AUDIOFUSE_HOME=str(tmp_path), AUDIOFUSE_DEVICE="cpu")
    rows = json.loads(done.stdout)
    assert rows["AUDIOFUSE_DEVICE"] == {"value": "cpu", "from": "environment"}
    assert rows["AUDIOFUSE_BROKER_URL"]["from"] == "local deployment"
    assert rows["AUDIOFUSE_INDEX_NAME"]["from"] == "default"
    assert "hunter2" not in done.stdout + _run("settings", AUDIOFUSE_HOME=str(tmp_path)).stdout


def test_help_teaches_the_first_steps() -> None:
    """The help names the commands to begin with."""
    done = _run("--help")
    assert done.returncode == 0
    assert "audiofuse up --bucket" in done.stdout
    assert "audiofuse search" in done.stdout


def test_evaluate_prints_every_metric(tmp_path: Path, tiny_encoder: "Encoder") -> None:
    """A bundle is scored on the queries of a split, as JSON and as a table, by each way to rank."""
    from core.bundle import save_bundle

    bundle = save_bundle(tiny_encoder, tmp_path, "tiny", "A card.")
    rows = [
        {"audio": str(SOUNDS / "animals/owl.wav"), "split": "val", "queries": [{"text": "an owl"}]},
        {"audio": str(SOUNDS / "animals/crow.flac"), "split": "train", "title": "crow"},
    ]
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluate", str(manifest), "--encoder", str(bundle)]
    told = json.loads(_run(*command, "--json").stdout)
    assert (told["queries"], told["clips"]) == (1, 2)
    assert set(told["metrics"]) == {"audio only", "metadata only", "hybrid"}
    assert set(told["metrics"]["hybrid"]) == {"mAP@10", "R@1", "R@5", "R@10", "MRR"}
    assert told["metrics"]["hybrid"]["MRR"] in {1, 0.5}  # one of two clips is the right one
    table = _run(*command).stdout
    assert "MRR" in table
    assert "1 queries, 2 clips" in table
