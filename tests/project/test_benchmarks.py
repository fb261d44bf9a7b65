"""Benchmarks that nothing runs by itself still begin."""

import runpy
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What measures a GPU says that there is none, by exit code 2, instead of measuring a CPU."""
    monkeypatch.syspath_prepend(TESTS / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TESTS / "benchmarks" / "gpu"), run_name="__main__")
    assert ended.value.code == 2
    assert "finds no usable GPU" in capsys.readouterr().err


def test_all_that_is_missing_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What improves an encoder wants manifests and pretrained parts, and names each that is not."""
    known = runpy.run_path(str(TESTS / "benchmarks" / "quality" / "improve.py"))
    missing_files = known["missing_files"]
    monkeypatch.setitem(missing_files.__globals__, "DATA", tmp_path)
    (tmp_path / "a file").touch()  # no folder: nothing is downloaded into it
    monkeypatch.setenv("AUDIOFUSE_PRETRAINED", str(tmp_path / "a file"))
    told = "\n".join(missing_files(trains=True))
    for name in ("esc.jsonl", "extra.jsonl", "human.jsonl", "mn04_as", "audioset_class_labels"):
        assert name in told
    assert len(missing_files(trains=False)) == 3  # a bundle that is there needs no pretrained parts
