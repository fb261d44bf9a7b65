"""What a GPU gives: ``make bench-gpu``, or a small part of it on a CPU: ``--device cpu --quick``.

    bare     clips/s of the device alone by batch size, and by each way to compute that might pay
    hosts    whole worker hosts, from a folder and from SeaweedFS; two that share the device
    memory   of process and GPU after many mixed batches, and as encoders come and go

Towers are EfficientAT's widths and texts of MiniLM's and BERT-base's size, with random weights:
nothing is downloaded, and nothing installed. Hosts run beside their servers on the same cores; an
embedded index ends near 1,000 messages a second, ``--qdrant-url`` takes a real one.

Exit codes: 0; 1 if something could not be measured, the table says why; 2 without a GPU.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from bare import Rows, batches, setup_of, shipped_parity, texts, ways
from hosts import Hosts, Load
from memory import PARTS, Mix, memory
from rich.console import Console
from towers import TEXTS, build, bundle, name_of
from worker import SOUNDS
from worker_rig import FOLDER, S3

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.starting import MINILM_PACKAGE
from audiofuse.workers.commands.terminal.display import facts_table, metrics_table

SECTIONS = ("bare", "hosts", "memory")
FUSED = (1, 16, 64, 256)
NO_GPU = 2  # exit code
QUICK: Mapping[str, Any] = {
    "widths": [0.1], "texts": ["tiny"], "batches": [1, 2, 3, 4], "budget_s": 0.05,
    "messages": 60, "clips": 20, "mixed": 200, "most": 4, "longest": 3,
    "real": 5,
}  # fmt: skip


class Report:
    """Tables as they come, and all figures at the end."""

    def __init__(self, device: str) -> None:
        """Tell what computes."""
        self.console = Console(width=120)
        self.failed = False
        name = torch.cuda.get_device_name() if device == "cuda" else "the CPU"
        self._figures: dict[str, Any] = {"device": name, "torch": torch.__version__}
        self.console.print(facts_table("", self._figures))

    def add(self, title: str, rows: Rows, without: Mapping[str, str] | None = None) -> None:
        """Show rows, and why others are missing."""
        self._figures[title] = {"rows": rows, "without": dict(without or {})}
        self.console.print(metrics_table(title, rows))
        if without:
            self.console.print(facts_table("not measured", without))
            self.failed |= any(reason.startswith("failed") for reason in without.values())

    def write(self, path: Path) -> None:
        """Write all figures."""
        path.write_text(json.dumps(self._figures, indent=1))


def measure_bare(options: argparse.Namespace, report: Report) -> None:
    """Measure the device alone: audio towers, then text towers."""
    for width in options.widths:
        largest = max(options.batches)
        setup = setup_of(
            build(width, "tiny"), options.device, options.seconds, largest, options.budget_s
        )
        rows = batches(setup, options.batches)
        report.add(f"{name_of(width)}, {options.seconds:.0f}-s windows", rows)
        best = max(rows, key=lambda name: rows[name]["clips/s"])
        size = options.batches[list(rows).index(best)]
        setup = setup_of(
            build(width, "tiny"), options.device, options.seconds, size, options.budget_s
        )
        report.add(f"{name_of(width)}, ways, batches of {size}", *ways(setup))
    for text in options.texts:
        setup = setup_of(build(0.1, text), options.device, options.seconds, 1, options.budget_s)
        report.add(f"text tower: {text}", texts(setup, FUSED))
    if find_spec(MINILM_PACKAGE):  # else it would be downloaded
        title = "the shipped encoder against float32 on a CPU, on real sounds"
        report.add(title, shipped_parity(options.device, _real_sounds(options.real)))


def _real_sounds(count: int) -> list[list[Samples]]:
    paths = [path for path in sorted(SOUNDS.rglob("*")) if path.suffix in {".wav", ".ogg", ".flac"}]
    sounds = []
    for path in paths[:count]:
        with open_recording(path, 600) as recording:
            sounds.append(list(recording.windows())[:3])
    return sounds


def measure_hosts(options: argparse.Namespace, report: Report, root: Path) -> None:
    """Measure whole hosts by every audio tower, and by the larger texts with one of them."""
    own = {"qdrant_url": options.qdrant_url} if options.qdrant_url else {}
    cores = len(os.sched_getaffinity(0))
    load = Load(options.messages, options.clips, options.seconds, options.buckets, cores, own)
    hosts = Hosts(root, load, options.device)
    try:
        for width in options.widths:
            report.add(f"hosts, {name_of(width)}", hosts.measure(width, options.texts[0]))
        for text in options.texts[1:]:
            report.add(
                f"hosts, {text}", hosts.measure(options.widths[len(options.widths) // 2], text)
            )
    finally:
        hosts.rig.stop()


def measure_memory(options: argparse.Namespace, report: Report, root: Path) -> None:
    """Measure what is kept in memory."""
    shape = options.widths[0], options.texts[0]
    bundles = [bundle(*shape, root / "memory", seed) for seed in (0, 1)]
    mix = Mix(options.mixed, options.most, options.longest)
    report.add(
        f"MiB after {mix.batches} mixed batches and {PARTS} swaps",
        memory(bundles, options.device, mix),
    )


def options_of() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small, to see that it works; what is given beside holds",
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--widths", nargs="+", type=float, default=[0.4, 1.0, 4.0])
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=["minilm", "bert-base"])
    sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    parser.add_argument("--batches", nargs="+", type=int, default=sizes, help="windows in one")
    parser.add_argument("--seconds", type=float, default=5, help="of a sound")
    parser.add_argument("--budget-s", type=float, default=2, help="for each figure of the device")
    parser.add_argument("--buckets", nargs="+", choices=[FOLDER, S3], default=[FOLDER, S3])
    parser.add_argument("--messages", type=int, default=4000)
    parser.add_argument("--clips", type=int, default=400, help="sounds that differ")
    parser.add_argument("--qdrant-url", help="of a Qdrant without a key; else an embedded one")
    parser.add_argument("--mixed", type=int, default=10_000, help="batches in the memory's section")
    parser.add_argument("--most", type=int, default=64, help="windows in one of them")
    parser.add_argument("--longest", type=int, default=10, help="seconds of a window in them")
    parser.add_argument("--real", type=int, default=60, help="real sounds that are compared")
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON")
    parser.set_defaults(**(QUICK if "--quick" in sys.argv else {}))
    return parser.parse_args()


def main() -> int:
    """Measure; return the exit code."""
    options = options_of()
    if options.device == "cuda" and not torch.cuda.is_available():
        Console(stderr=True).print(
            "PyTorch finds no usable GPU here, so there is nothing to measure; "
            "--device cpu --quick shows that the command works"
        )
        return NO_GPU
    report = Report(options.device)
    with tempfile.TemporaryDirectory(prefix="audiofuse-bench-") as temporary:
        root = Path(temporary)
        if "bare" in options.sections:
            measure_bare(options, report)
        if "memory" in options.sections:
            measure_memory(options, report, root)
        if "hosts" in options.sections:
            measure_hosts(options, report, root)
    if options.json:
        report.write(options.json)
    return int(report.failed)


if __name__ == "__main__":
    raise SystemExit(main())
