"""``audiofuse-train`` from a folder of sounds to a bundle and a page, and its errors."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from bundles import saved_bundle

from audiofuse.core.bundles.bundle import load_bundle
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.evaluation import QueryScores
from audiofuse.core.model.config import TINY, Fusion
from audiofuse.core.settings import Settings
from audiofuse.trainer import cli
from audiofuse.trainer.cli import main
from audiofuse.trainer.data.corpus import Division, prepare_corpus
from audiofuse.trainer.data.gallery import KindScores
from audiofuse.trainer.data.metadata import Captions, Kind
from audiofuse.trainer.options import refuse_unused
from audiofuse.trainer.training import calibration
from audiofuse.trainer.training.config import FitConfig

ROOT = Path(__file__).parents[2]
SOUNDS = ROOT / "examples" / "sounds"
NAMES = ("animals/owl.wav", "animals/crow.flac", "home/typing.mp3", "water/bubbles.opus")


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """Return a bucket of sounds whose sidecars have captions: three to learn from, one to judge."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    for name in NAMES:
        sound = folder / Path(name).name
        shutil.copy(SOUNDS / name, sound)
        stem = sound.stem
        words = {"title": stem, "captions": [f"the sound of {stem}", f"a recording of {stem}"],
                 "split": "val" if stem == "owl" else "train"}  # fmt: skip
        Path(f"{sound}.json").write_text(json.dumps(words))
    return folder


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: object
    stdout: str
    stderr: str


@pytest.fixture
def train(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Return the command line, run in this process."""

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["audiofuse-train", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code or 0, *capfd.readouterr())

    return run


def test_a_bucket_becomes_a_better_documented_bundle(
    bucket: Path,
    tmp_path: Path,
    tiny_encoder: Encoder,
    train: Callable[..., Done],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``fit`` on a bucket writes a bundle that loads, with metrics and card, and a page."""
    (bucket / "broken.wav").write_text("no sound")
    start = saved_bundle(tiny_encoder, tmp_path, "tiny", "")
    run = tmp_path / "run"
    options = ("--epochs", "1", "--batch-size", "4", "--crop-s", "2", "--name", "mine")
    done = train("fit", bucket, "--run", run, "--start", start, *options)
    assert done.code == 0, done.stderr
    assert "broken.wav: not_audio" in caplog.text
    bundle = Path(done.stdout.splitlines()[-1])
    load_bundle(bundle)
    assert bundle.name.startswith("mine-")
    card = (bundle / "README.md").read_text()
    assert "Trained on 3 sounds" in card
    assert "What a score means\n\nNot known: no questions" in card  # one sound judges here
    assert set(json.loads((bundle / "metrics.json").read_text())["slices"]["all"]) >= {"random"}
    assert "<audio" in (run / "report.html").read_text()
    again = train("fit", bucket, "--run", run, "--start", start, *options)
    assert again.code == 2
    assert "--resume" in again.stderr


def test_a_bundle_is_calibrated_as_another_version(
    bucket: Path,
    tmp_path: Path,
    tiny_encoder: Encoder,
    train: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``calibrate`` keeps weights, name and card, and adds what a score means."""
    bundle = saved_bundle(tiny_encoder, tmp_path, "tiny", "# Card\n")
    splits = ("--fit", "train", "--check", "val", "--bundle", bundle, "--out", tmp_path / "out")
    done = train("calibrate", bucket, *splits)
    assert done.code == 2
    assert "too few hits" in done.stderr
    monkeypatch.setattr(calibration, "FEWEST", 1)
    done = train("calibrate", bucket, *splits)
    assert done.code == 0, done.stderr
    found = Path(done.stdout.splitlines()[-1])
    assert found.name.startswith("tiny-")
    assert found.name != bundle.name
    weights = [(each / "model.safetensors").read_bytes() for each in (bundle, found)]
    assert weights[0] == weights[1]
    assert load_bundle(found).config.relevance is not None
    assert (found / "README.md").read_text().startswith("# Card\n\n## What a score means")
    done = train("calibrate", bucket, "--bundle", bundle)
    assert "--out" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "nowhere.jsonl", "--run", "run"), "nowhere.jsonl"),
        (("fit", "nowhere.jsonl", "--run", "run", "--epochs", "0"), "epochs"),
        (("fit", "nowhere.jsonl", "--run", "run", "--metadata", "loud"), "loud"),
    ],
)
def test_wrong_usage_is_one_clear_error(
    arguments: tuple[str, ...], message: str, train: Callable[..., Done]
) -> None:
    """A missing source and bad options end with code 2 and a line that names them."""
    done = train(*arguments)
    assert done.code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text", "my-bert"), "--text: only with --audio"),
        (("--fusion", "mid", "--separate"), "--fusion, --separate: only with --audio"),
        (("--audio", "mn10_as", "--start", "bundle"), "--start and --audio"),
        (("--audio", "mn10_as", "--fusion", "audio", "--separate"), "--separate: --fusion audio"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    options: tuple[str, ...], message: str, train: Callable[..., Done]
) -> None:
    """What would do nothing ends with code 2 before anything is read, and says what to write."""
    done = train("fit", "nowhere.jsonl", "--run", "run", *options)
    assert done.code == 2
    assert message in done.stderr


def test_a_part_of_no_cell_is_not_frozen(train: Callable[..., Done]) -> None:
    """What none of the chosen cells has is refused, before anything is read."""
    cells = ("--cells", "late-*-shared-real", "--cells", "audio-real")
    done = train("paper", "nowhere", "--run", "run", *cells, "--freeze", "mid_fusion.layers")
    assert done.code == 2
    assert "--freeze mid_fusion.layers: no cell" in done.stderr


@pytest.mark.parametrize(
    ("fusion", "asked", "named"),
    [
        ("metadata", {"crop_s": 5.0, "audio_rate": 0.1}, "--crop-s, --audio-rate: .* no sound"),
        ("audio", {"drop_metadata": 0.5}, "--drop-metadata: .* no metadata"),
    ],
)
def test_options_that_a_fusion_has_no_use_for_are_refused(
    fusion: Fusion, asked: dict[str, float], named: str
) -> None:
    """An encoder that hears nothing takes no options of sounds, one without words none of words."""
    config = FitConfig(**asked)  # type: ignore[arg-type]
    refuse_unused(config, "late")
    with pytest.raises(ConfigurationError, match=named):
        refuse_unused(config, fusion)


def test_a_weight_needs_a_teacher() -> None:
    """What teachers would count is no option where there are none."""
    refuse_unused(FitConfig(teacher=["a"], teacher_weight=2), "late")
    with pytest.raises(ConfigurationError, match="--teacher-weight"):
        refuse_unused(FitConfig(teacher_weight=2), "late")


def test_the_kind_that_is_trained_on_chooses_the_weights(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --metadata the criterion ranks items that carry that kind alone."""
    kinds: list[Kind] = []

    def score(_encoder: object, _gallery: object, split: str, kind: Kind) -> KindScores:
        assert split == "val"
        kinds.append(kind)
        one = torch.ones(1)
        return KindScores(["x"], QueryScores(one, one, dict.fromkeys((1, 5, 10), one)))

    monkeypatch.setattr(cli, "score_kind", score)
    corpus = prepare_corpus([str(bucket)], Settings(), tmp_path / "cache", Division())
    task = cli._task(corpus, FitConfig(metadata=Kind.OS), [])
    assert task.score(Encoder.random(TINY, seed=0)) == {"hybrid mAP@10": 1.0}
    assert kinds == [Kind.OS]


def test_captions_that_nobody_supplied_are_asked_for(bucket: Path, tmp_path: Path) -> None:
    """Without one artificial caption, training on them is refused with the option to change."""
    corpus = prepare_corpus([str(bucket)], Settings(), tmp_path / "cache", Division())
    with pytest.raises(ConfigurationError, match=r"no clip .* supplied captions: .*--captions"):
        cli._task(corpus, FitConfig(captions=Captions.SUPPLIED), [])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_process_joins_on_its_own_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several processes each takes its GPU, and says so to the collectives; else gloo."""
    calls: list[object] = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(cli.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(
        cli.distributed,
        "init_process_group",
        lambda backend, **given: calls.append((backend, given.get("device_id"))),
    )
    third = torch.device("cuda", 3)
    assert cli._join_world(Settings()) == (third if device == "cuda" else torch.device("cpu"))
    assert calls == ([third, ("nccl", third)] if device == "cuda" else [("gloo", None)])


def test_a_bucket_without_captions_says_what_is_missing(
    bucket: Path, tmp_path: Path, train: Callable[..., Done]
) -> None:
    """Sounds that nobody described cannot be judged by, and the error says so."""
    for sidecar in bucket.glob("*.json"):
        sidecar.unlink()
    done = train("fit", bucket, "--run", tmp_path / "run")
    assert done.code == 2
    assert "captions" in done.stderr
