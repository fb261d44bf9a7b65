"""The command line: clear errors, exit codes that scripts can use, no secrets."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bundles import saved_bundle
from click.testing import Result
from redis import Redis
from typer.testing import CliRunner

from audiofuse.core.bundles.document import Rollout
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.errors import AudiofuseError, Reason, Rejected
from audiofuse.core.evaluation.scorecards import open_scorecards
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.main import cli, main
from audiofuse.workers.queue.dead_letters import DeadLetters

if TYPE_CHECKING:
    from audiofuse.core.encoder.encoder import Encoder

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process: starting one for each takes a hundred times as long."""
    out, err, code = StringIO(), StringIO(), None
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["audiofuse", *arguments])
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int), f"ended with {code!r}"
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def _run_apart(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "audiofuse", *arguments],
        env=os.environ | {"COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", ""], "no words"),
        (["search", "?!"], "no words"),
        (["search", "a dog", "--frobnicate"], "No such option"),
        (["search", "a dog", "--limit", "0"], "--limit"),
        (["frobnicate"], "No such command"),
        (["up", "--bucket", "/does/not/exist"], "/does/not/exist"),
        (["up", "--bucket", "s3://"], "names no bucket"),
        (["evaluate", "/does/not/exist.jsonl"], "/does/not/exist.jsonl"),
        (["evaluate", "/does/not/exist.jsonl", "--seed", "1"], "add --blank"),
        (["evaluate", "a.jsonl", "--moments", "b.jsonl"], "scored alone"),
        (["evaluate", "a.jsonl", "--version", "v", "--encoder", "."], "instead of an --encoder"),
        (["intake", "sqs"], "AUDIOFUSE_BUCKET"),
        (["serve"], "AUDIOFUSE_ENCODER"),
        (["serve-index"], "AUDIOFUSE_QDRANT_API_KEY"),
        (["reconcile"], "AUDIOFUSE_BUCKET"),
        (["reconcile", "--every", "6 hours"], "6 hours"),
        (["reconcile", "--every", "0h"], "0h"),
        (["reconcile", "--every", "6h", "--dry-run"], "--dry-run"),
        (["explain"], "give a key"),
        (["explain", "a.wav", "--all"], "give a key"),
        (["explain", "a.wav", "--prefix", "a"], "--all"),
        (["dead", "list", "--reason", "odd"], "not_audio"),
        (["dead", "list", "--older-than", "soon"], "soon"),
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


def test_a_misspelt_setting_is_named_with_the_right_one(tmp_path: Path) -> None:
    """What looks like a setting and is none is told, not ignored; Kubernetes' variables are not."""
    (tmp_path / ".env").write_text("AUDIOFUSE_QDRAN_URL=http://here\n")
    foreign = {"AUDIOFUSE_SEARCH_SERVICE_HOST": "x", "AUDIOFUSE_SEARCH_PORT_7700_TCP_ADDR": "x"}
    done = _run("settings", AUDIOFUSE_BUKET=".", AUDIOFUSE_FROBNICATE="1", **foreign)
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert "AUDIOFUSE_BUKET is no setting" in lines[0]
    assert "is AUDIOFUSE_BUCKET meant?" in lines[0]
    assert "AUDIOFUSE_FROBNICATE is no setting" in lines[1]
    assert "is AUDIOFUSE_QDRANT_URL meant?" in lines[2]


@pytest.mark.parametrize(
    "command",
    [["search", "a dog"], ["status"], ["reconcile"], ["backfill"], ["dead", "list"]],
)
def test_nobody_to_ask_is_a_failure(command: list[str]) -> None:
    """Without a deployment a question fails with exit code 1 and says what was asked for."""
    away = {
        "AUDIOFUSE_SEARCH_URL": "http://127.0.0.1:1",
        "AUDIOFUSE_BROKER_URL": "redis://127.0.0.1:1",
        "AUDIOFUSE_QDRANT_URL": "http://127.0.0.1:1",
        "AUDIOFUSE_BUCKET": ".",
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
    done = _run_apart("--help")
    assert done.returncode == 0
    assert "audiofuse up --bucket" in done.stdout
    assert "audiofuse search" in done.stdout


@pytest.fixture
def letters(
    redis: Redis, valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> DeadLetters:
    """Return the letters of a bucket: two of today, one of three days ago."""
    monkeypatch.setenv("AUDIOFUSE_BUCKET", str(tmp_path / "sounds"))
    monkeypatch.setenv("AUDIOFUSE_BROKER_URL", valkey_url)
    letters, now = DeadLetters(redis, "audiofuse", "tiny-000000"), time.time()
    ages = {"a/old.wav": 3 * 86400, "a/new.wav": 60, "b/new.wav": 10}
    for key, age in ages.items():
        reason = Reason.SILENT if key.startswith("b") else Reason.DAMAGED
        with monkeypatch.context() as patch:
            patch.setattr(
                "audiofuse.workers.queue.dead_letters.time.time", lambda age=age: now - age
            )
            letters.add(key, Rejected(reason, f"what is wrong with {key}"))
    return letters


def _dead(*arguments: str, **options: str) -> Result:
    return CliRunner().invoke(cli, ["dead", *arguments], env={"COLUMNS": "200"}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["b/new.wav", "a/new.wav", "a/old.wav"]),
        (["--reason", "damaged"], ["a/new.wav", "a/old.wav"]),
        (["--prefix", "b/"], ["b/new.wav"]),
        (["--older-than", "2d"], ["a/old.wav"]),
        (["--older-than", "30s", "--prefix", "a"], ["a/new.wav", "a/old.wav"]),
        (["--reason", "silent", "--older-than", "1h"], []),
        (["--limit", "2"], ["b/new.wav", "a/new.wav"]),
        (["--limit", "0"], ["b/new.wav", "a/new.wav", "a/old.wav"]),
    ],
)
@pytest.mark.usefixtures("letters")
def test_dead_letters_are_listed_as_chosen(options: list[str], expected: list[str]) -> None:
    """What is asked for is listed, newest first: a JSON object a line, or a table."""
    lines = _dead("list", "--json", *options).stdout.splitlines()
    assert [json.loads(line)["key"] for line in lines] == expected
    table = _dead("list", *options).stdout
    assert [word for word in table.split() if word.endswith(".wav")][::2] == expected


@pytest.mark.usefixtures("letters")
def test_one_dead_letter_is_shown_whole() -> None:
    """Everything known of an object is shown; one without a letter is a failure."""
    shown = json.loads(_dead("show", "b/new.wav", "--json").stdout)
    assert shown.pop("at") == pytest.approx(time.time() - 10, abs=30)
    assert shown == {
        "key": "b/new.wav",
        "reason": "silent",
        "detail": "what is wrong with b/new.wav",
        "etag": "",
        "encoder": "tiny-000000",
        "count": 1,
    }
    assert "tiny-000000" in _dead("show", "b/new.wav").stdout
    missing = _dead("show", "other.wav")
    assert isinstance(missing.exception, AudiofuseError)
    assert "other.wav" in str(missing.exception)


def test_dead_letters_are_retried_as_chosen(letters: DeadLetters, redis: Redis) -> None:
    """Retry queues the chosen keys on the live lane, and leaves the letters until it is known."""
    assert json.loads(_dead("retry", "--reason", "damaged", "--json").stdout) == {"queued": 2}
    assert "1 objects" in _dead("retry", "b/new.wav", "unknown.wav").stdout
    assert (redis.llen("audiofuse:live"), redis.llen("audiofuse:backfill")) == (3, 0)
    assert letters.count() == 3


def test_trying_again_is_followed(letters: DeadLetters, redis: Redis) -> None:
    """With --wait it ends once each has another verdict, or is none any more."""

    def work() -> None:
        while redis.llen("audiofuse:live") < 2:
            time.sleep(0.01)
        letters.clear(["a/new.wav"])
        letters.add("a/old.wav", Rejected(Reason.DAMAGED, "still"))

    worker = threading.Thread(target=work)
    worker.start()
    done = _dead("retry", "--reason", "damaged", "--wait", "--json")
    worker.join()
    assert json.loads(done.stdout) == {"queued": 2, "unsettled": 0}


def test_purging_asks_first(letters: DeadLetters) -> None:
    """Nothing is forgotten without a yes, and then only what was chosen."""
    refused = _dead("purge", "--prefix", "a/", input="n\n")
    assert refused.exit_code == 1
    assert "Forget 2 dead letters?" in refused.stderr
    assert _dead("purge", input="").exit_code == 1  # nobody to ask
    assert _dead("purge", "a/new.wav", "--prefix", "b/", "--yes").exit_code == 2  # which of them?
    assert letters.count() == 3
    assert _dead("purge", "--prefix", "a/", input="y\n").exit_code == 0
    assert list(letters.keys()) == ["b/new.wav"]
    assert json.loads(_dead("purge", "--yes", "--json").stdout) == {"purged": 1}
    assert letters.count() == 0


def test_evaluate_prints_every_metric(tmp_path: Path, tiny_encoder: "Encoder") -> None:
    """A bundle is scored on the queries of a split, as JSON and as a table, by each way to rank."""
    bundle = saved_bundle(tiny_encoder, tmp_path, "tiny", "A card.")
    rows = [
        {"audio": str(SOUNDS / "animals/owl.wav"), "split": "val", "queries": [{"text": "an owl"}]},
        {"audio": str(SOUNDS / "animals/crow.flac"), "split": "train", "title": "crow"},
    ]
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluate", str(manifest), "--encoder", str(bundle)]
    told = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    assert (told["queries"], told["clips"]) == (1, 2)
    assert set(told["metrics"]) == {"audio only", "metadata only", "hybrid"}
    assert set(told["metrics"]["hybrid"]) == {"mAP@10", "R@1", "R@5", "R@10", "MRR"}
    assert told["metrics"]["hybrid"]["MRR"] in {1, 0.5}  # one of two clips is the right one
    table = CliRunner().invoke(cli, command).stdout
    assert "MRR" in table
    assert "1 queries, 2 clips" in table


def test_a_published_version_keeps_what_it_scored(
    tmp_path: Path, tiny_encoder: "Encoder", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scorecard has each metric with an interval, and the list of encoders shows it."""
    monkeypatch.setenv("AUDIOFUSE_REGISTRY", str(tmp_path / "registry"))
    registry = open_registry(Settings())
    version = registry.publish(saved_bundle(tiny_encoder, tmp_path, "tiny", "A card."))
    registry.write(Rollout(live=version), None)
    manifest = tmp_path / "clips.jsonl"
    row = {"audio": str(SOUNDS / "animals/owl.wav"), "split": "val", "queries": [{"text": "owl"}]}
    manifest.write_text(json.dumps(row) + "\n")
    done = CliRunner().invoke(cli, ["evaluate", str(manifest), "--version", version, "--json"])
    assert done.exit_code == 0, done.exception
    told = json.loads(done.stdout)["metrics"]
    (score,) = open_scorecards(Settings()).of(version).scores
    assert (score.asked, score.queries, score.sounds) == ("val of clips.jsonl", 1, 1)
    kept = {
        system: {name: figure.value for name, figure in metrics.items()}
        for system, metrics in score.figures.items()
    }
    assert kept == told
    listed = json.loads(CliRunner().invoke(cli, ["encoder", "list", "--json"]).stdout)
    assert listed[version]["role"] == "live"
    assert listed[version]["scores"][0]["data"] == score.data
    assert "val of clips.jsonl" in CliRunner().invoke(cli, ["encoder", "list"]).stdout


def test_evaluate_follows_a_benchmark(tmp_path: Path, tiny_encoder: "Encoder") -> None:
    """ClothoV2's evaluation split is scored alone, and by DCASE 2025's relevant sounds."""
    bundle = saved_bundle(tiny_encoder, tmp_path, "tiny", "A card.")
    for split, names in {
        "development": ["owl.wav"],
        "evaluation": ["crow.flac", "owl.wav"],
    }.items():
        (tmp_path / split).mkdir()
        rows = ["file_name,caption_1,caption_2,caption_3,caption_4,caption_5"]
        for name in names:
            (tmp_path / split / name).symlink_to(SOUNDS / "animals" / name)
            rows.append(f"{name},a {name},b,c,d,e")
        (tmp_path / f"clotho_captions_{split}.csv").write_text("\n".join(rows))
    (tmp_path / "metadata_eval.csv").write_text(
        "query,audio_filenames\nbirds,\"['crow.flac', 'owl.wav']\"\n"
    )
    command = ["evaluate", str(tmp_path), "--split", "evaluation", "--encoder", str(bundle)]
    asked = CliRunner().invoke(cli, [*command, "--json"])
    assert "the benchmark has 1,045" in asked.stderr
    told = json.loads(asked.stdout)
    assert (told["queries"], told["clips"]) == (10, 2)
    assert told["several relevant"]["queries"] == 1
    assert told["several relevant"]["metrics"]["audio only"]["mAP@16"] == 1  # both are right
    assert "DCASE 2025: 1 queries" in CliRunner().invoke(cli, command).stdout
    refused = CliRunner().invoke(cli, [*command, str(tmp_path)])
    assert "scored alone" in str(refused.exception)
