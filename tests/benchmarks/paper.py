"""The whole grid of the paper in small, to its table of claims: ``make paper``.

Real rows of ClothoV2's and AudioCaps' tables, made sounds and tiny random towers (``paper_data``)
go through ``audiofuse-train paper``: every cell is trained and tested on each data set, with every
seed. Then as many machines have a seed each, and their files, joined, must give the same claims.
The figures mean nothing; that the grid ends does.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from paper_data import make_audiocaps, make_clotho, make_towers
from rich.console import Console
from typer.testing import CliRunner

from audiofuse.trainer.cli import cli

CONSOLE = Console(width=200)
TEXT = Path(__file__).parents[3] / "shared" / "data" / "text"
SMALL = ("--epochs", "1", "--no-every-caption", "--batch-size", "4", "--crop-s", "1")


def main() -> int:
    """Run it and print the claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each cell")
    parser.add_argument("--cells", action="append", help="as of audiofuse-train paper")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="audiofuse-paper-") as folder:
        return run(Path(folder), asked.seeds, asked.cells or [])


def run(folder: Path, seeds: int, cells: list[str]) -> int:
    """Run the grid in one folder and in shared ones; 0 when both come to the same claims."""
    clotho = make_clotho(TEXT, folder / "clotho", 8)
    audiocaps = make_audiocaps(TEXT, folder / "audiocaps", 16)
    audio, text = make_towers(folder / "towers")
    chosen = [word for cell in cells for word in ("--cells", cell)]
    common = [
        "paper", str(clotho), str(audiocaps), "--audio", str(audio), "--text", str(text),
        "--cache", str(folder / "cache"), *SMALL, *chosen,
    ]  # fmt: skip
    began = time.monotonic()

    def train(name: str, seeds: int, first: int = 0) -> Path:
        run = folder / name
        options = ["--run", str(run), "--seeds", str(seeds), "--first-seed", str(first)]
        CliRunner().invoke(cli, [*common, *options], catch_exceptions=False)
        trained = len(list((run / "weights").iterdir()))
        CONSOLE.print(f"{name}: {trained} trainings, {time.monotonic() - began:.0f} s")
        return run

    whole = train("whole", seeds)
    machines = [train(f"machine {number}", 1, number) for number in range(seeds)]
    for other in machines[1:]:
        with (machines[0] / "cells.jsonl").open("a") as lines:
            lines.write((other / "cells.jsonl").read_text())
        shutil.copytree(other / "queries", machines[0] / "queries", dirs_exist_ok=True)
    joined = train("machine 0", seeds)
    CONSOLE.print((whole / "results.md").read_text(), markup=False)
    claims = [json.loads((each / "results.json").read_text())["claims"] for each in (whole, joined)]
    same = claims[0] == claims[1]
    CONSOLE.print(f"one machine and {seeds} come to {'the same' if same else 'OTHER'} claims")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
