"""What so many sounds need is computed from what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from audiofuse.core.errors import ConfigurationError
from audiofuse.workers.commands.main import cli
from audiofuse.workers.deployment.plan import (
    SHIPPED,
    Bucket,
    Figures,
    Prices,
    Vectors,
    Wanted,
    compute,
    read_figures,
)

FIGURES = Figures.model_validate({
    "measured": "by hand",
    "seconds": 5,
    "cpu_ms": {
        kind: {"messages": 4, "device": 1, "decoders": 2, "encoder": 3, "servers": 1}
        for kind in Bucket
    },
})  # fmt: skip
PRICES = Prices(core_hour=1, million_requests=2, memory_gb_month=1, disk_gb_month=1)
WANTED = Wanted(sounds=3_600_000, seconds=5, cores=2)


def amounts(wanted: Wanted) -> dict[str, float]:
    """Return the plan's amounts, in its units."""
    lines = compute(wanted, FIGURES, PRICES)
    return {line.what: float(line.amount.split()[0].replace(",", "")) for line in lines}


def test_time_is_what_was_measured_times_how_many() -> None:
    """Messages cost the same however long a sound is, listening as long as it lasts."""
    short = amounts(WANTED)
    assert short["core-hours of workers"] == 10
    assert short["hours on 2 cores"] == 5
    assert short["money for workers"] == 10
    long = amounts(replace(WANTED, seconds=50, moments=False))
    assert long["core-hours of workers"] == 5 + 10 * 5


def test_a_gpu_takes_the_encoding() -> None:
    """Its rate bounds the hours, and says how many cores must feed it."""
    found = amounts(replace(WANTED, gpu_clips_per_s=500))
    assert found["core-hours of workers"] == 7
    assert found["cores that keep one GPU busy"] == 4
    assert found["hours on 2 cores"] == 3.5
    assert amounts(replace(WANTED, gpu_clips_per_s=100))["hours on 2 cores"] == 10


def test_space_grows_with_moments_and_shrinks_with_vectors() -> None:
    """A sound of 30 s has six moments, unless they are off; int8 has float32 on disk besides."""
    long = replace(WANTED, seconds=30)
    assert amounts(long)["points"] == 7 * WANTED.sounds
    assert amounts(replace(long, moments=False))["points"] == WANTED.sounds
    assert amounts(WANTED)["points"] == WANTED.sounds
    full, small = amounts(long), amounts(replace(long, vectors=Vectors.INT8))
    assert small["index, memory"] < full["index, memory"] / 2
    assert small["index, disk"] == full["index, disk"]
    twice = amounts(replace(long, replicas=2))["index, memory"]
    assert twice == pytest.approx(2 * full["index, memory"], rel=0.01)


def test_a_folder_has_no_requests() -> None:
    """Only S3 is paid by the request."""
    assert amounts(WANTED)["requests to S3"] == 8 * WANTED.sounds
    assert "requests to S3" not in amounts(replace(WANTED, bucket=Bucket.FOLDER))


def test_figures_are_the_release_s_or_ones_own(tmp_path: Path) -> None:
    """Those of the release are whole; others are taken instead, and refused with a reason."""
    assert read_figures(SHIPPED).cpu_ms.keys() == {*Bucket}
    mine = tmp_path / "mine.json"
    mine.write_text(FIGURES.model_dump_json())
    command = ["plan", "--sounds", "3600000", "--seconds", "5", "--figures", str(mine), "--json"]
    told = CliRunner().invoke(cli, command)
    assert json.loads(told.stdout)[0]["amount"] == "10"
    mine.write_text("{}")
    with pytest.raises(ConfigurationError, match="no figures of make bench-worker"):
        read_figures(mine)


def test_the_benchmark_writes_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it measured of a free and of a real encoder becomes what both cost apart."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from worker_cpu import DECODERS, DEVICE, MESSAGES
    from worker_model import figures
    from worker_rig import Measured

    def measured(device_ms: float) -> Measured:
        cpu_ms = {MESSAGES: 4.0, DEVICE: device_ms, DECODERS: 2.0, "index": 0.6, "broker": 0.4}
        return Measured(clips_per_s=1, cpu_ms=cpu_ms)

    told = figures({"s3": measured(1)}, {"s3": measured(4)}, 5, "by hand")
    assert Figures.model_validate(told).cpu_ms[Bucket.S3] == FIGURES.cpu_ms[Bucket.S3]
