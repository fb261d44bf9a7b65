"""How fast a worker host is, and what a message costs: ``make bench-worker``.

    bare     decode and encode in one process, as the worker does, at the best batch size; no more
    worker   ours: messages in Valkey, sounds in a bucket, points in Qdrant
    naive    what most people would write (``worker_naive.py``)
    free     ours with an encoder that costs nothing: what all around the encoder costs and can do
    sidecar  30-s clips with the shipped encoder: synced whole, then each with a changed sidecar

Buckets are a folder, and SeaweedFS behind the S3 protocol; Qdrant is the embedded one behind its
owner. Servers share the cores of what is measured. Sounds are pieces of real ones. All variants
take turns. Clips a second are the best of the rounds, counted until the last message is
acknowledged. CPU milliseconds a message, by process, are the median of the rounds: they hold on
busy machines, too. ``--write-model`` computes from them what deploy/capacity.md says.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from worker_model import costs, figures, model, rates, write_model
from worker_rig import FOLDER, S3, WARM_UP, Measured, Rig, Shape, on_cores, words_of

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.loading import load_folder
from audiofuse.core.encoder.embeddings import AudioEmbedding
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.starting import DEFAULT_NAME, default_encoder
from audiofuse.core.model.config import TINY, AudioConfig, EncoderConfig
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.display import metrics_table
from audiofuse.workers.indexing.device.measure import best_batch_s
from audiofuse.workers.telemetry.names import Outcome

WORDS = ("rain", "on", "a", "tin", "roof", "wind", "dog", "barks", "far", "in", "the", "street")
SOUNDS = Path(__file__).parents[2] / "examples" / "sounds"
LONG_S = 30
ROWS = ("bare", "worker", "naive", "free", "sidecar")


@dataclass(frozen=True)
class Sounds:
    """Objects of the buckets: ``texts`` by key, and the file of each key's sound."""

    texts: dict[str, str]
    paths: dict[str, Path]
    warm_up: list[str]

    @property
    def keys(self) -> list[str]:
        """The keys that are measured."""
        return [key for key in self.texts if key not in self.warm_up]

    def fill(self, rig: Rig, buckets: Sequence[str]) -> None:
        """Write everything into the buckets."""
        for bucket in buckets:
            for key, text in self.texts.items():
                rig.put(bucket, key, self.paths[key].read_bytes())
                if text:
                    rig.put(bucket, f"{key}.json", words_of(text))


def pieces(folder: Path, count: int, seconds: float) -> list[Path]:
    """Write WAV files of ``seconds`` (mono, 32 kHz, 16 bit) cut from the example sounds."""
    sounds: list[Samples] = []
    for path in sorted(SOUNDS.rglob("*.*")):
        if path.suffix in {".wav", ".flac", ".ogg", ".mp3"}:
            with open_recording(path, 600) as recording:
                sounds += recording.windows()
    rng = np.random.default_rng(0)
    everything = np.concatenate(sounds)
    paths = []
    for number in range(count):
        start = rng.integers(everything.size - int(seconds * SAMPLE_RATE))
        piece = everything[start : start + int(seconds * SAMPLE_RATE)]
        paths.append(folder / f"{seconds:.0f}-{number:05}.wav")
        with wave.open(str(paths[-1]), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes((piece.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return paths


def sounds(folder: Path, messages: int, clips: int, seconds: float, *, words: bool) -> Sounds:
    """Make so many objects out of so many clips, each with words of its own or none."""
    rng = np.random.default_rng(0)
    paths = pieces(folder, clips, seconds)
    keys = [f"{seconds:.0f}-{number:05}.wav" for number in range(messages + WARM_UP)]
    texts = {key: sentence(rng, int(rng.integers(2, 24))) if words else "" for key in keys}
    own = {key: paths[number % len(paths)] for number, key in enumerate(keys)}
    return Sounds(texts, own, keys[messages:])


def sentence(rng: np.random.Generator, words: int) -> str:
    """Return so many words."""
    return " ".join(rng.choice(WORDS, words))


def bare(bundle: Path, own: Sounds, batch_s: float | None, cores: int) -> Measured:
    """Decode and encode alone, one after the other."""
    with on_cores(cores):
        encoder = load_folder(Settings(), bundle)
        size = int((batch_s or best_batch_s(encoder)) // 5)
        started, used = time.perf_counter(), time.process_time()
        for start in range(0, len(own.keys), size):
            keys, clips = own.keys[start : start + size], []
            for key in keys:
                with open_recording(own.paths[key], 600) as recording:
                    clips.append(list(recording.windows()))
            encoded = encoder.encode_windows([window for clip in clips for window in clip])
            pooled = np.stack([each.total / each.steps for each in encoded])  # one window a clip
            encoder.fuse(AudioEmbedding(pooled), [own.texts[key] for key in keys])
        count = len(own.keys)
        cpu_ms = {"messages": 1000 * (time.process_time() - used) / count}
        return Measured(count / (time.perf_counter() - started), cpu_ms)


class Race:
    """All variants, ready to take turns."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        """Make sounds, bundles and servers."""
        (root / "sounds").mkdir()
        self._rng = np.random.default_rng(1)  # of words that differ in each round
        config = EncoderConfig(dim=384, audio=AudioConfig(width=options.width), text=TINY.text)
        shipped = save_bundle(default_encoder(), root, DEFAULT_NAME, "")
        self._bundle = shipped
        if not options.shipped:
            self._bundle = save_bundle(Encoder.random(config, seed=0), root, "bench", "")
        self._shapes = [Shape(*each) for each in zip(options.processes, options.cores, strict=True)]
        self._buckets = [FOLDER, S3] if options.bucket == "both" else [options.bucket]
        self._batch_s = options.batch_s
        folder = root / "sounds"
        self._short = sounds(
            folder, options.messages, options.clips, options.seconds, words=options.shipped
        )
        self._long = sounds(folder, options.refused, options.refused, LONG_S, words=True)
        self.rig = Rig(root, self._buckets, options.batch_s)
        self._shipped = shipped
        self._short.fill(self.rig, self._buckets)
        if "sidecar" in options.rows:
            self._long.fill(self.rig, self._buckets)

    def variants(self, rows: Sequence[str]) -> dict[str, Callable[[], dict[str, Measured]]]:
        """Return what measures each variant, by name; each tells of one row, or of several."""
        found: dict[str, Callable[[], dict[str, Measured]]] = {}
        if "bare" in rows:
            cores = self._shapes[0].cores
            found["bare"] = lambda: {"bare": bare(self._bundle, self._short, self._batch_s, cores)}
        for bucket in self._buckets:
            for shape in self._shapes:
                size = f", {shape}" if len(self._shapes) > 1 else ""
                for kind in ("worker", "naive", "free"):
                    if kind in rows and (kind != "naive" or shape == self._shapes[0]):
                        name = f"{kind}, {bucket}{size}"
                        found[name] = lambda each=(name, kind, bucket, shape): self._host(*each)
            if "sidecar" in rows:
                found[f"sidecar, {bucket}"] = lambda bucket=bucket: self._sidecar(bucket)
        return found

    def _host(self, name: str, kind: str, bucket: str, shape: Shape) -> dict[str, Measured]:
        options = {"naive": kind == "naive", "free": kind == "free"}
        with self.rig.host(bucket, shape, self._bundle, **options) as host:
            measured = host.measure(self._short.keys, self._short.warm_up)
            if kind != "naive":  # which says nothing
                expected(host.outcomes(), Outcome.CREATED, len(self._short.texts))
        fill, padding = host.batches()
        return {name: replace(measured, fill=fill, padding=padding)}

    def _sidecar(self, bucket: str) -> dict[str, Measured]:
        """Sync long clips whole, then again, each with other words."""
        with self.rig.host(bucket, self._shapes[0], self._shipped) as host:
            full = host.measure(self._long.keys, self._long.warm_up)
            for key in self._long.keys:
                self.rig.put(bucket, f"{key}.json", words_of(sentence(self._rng, 8)))
            again = host.measure(self._long.keys)
            expected(host.outcomes(), Outcome.REFUSED, len(self._long.keys))
        return {f"30-s clip, {bucket}": full, f"changed sidecar, {bucket}": again}


def expected(outcomes: Mapping[str, int], outcome: Outcome, count: int) -> None:
    """Refuse figures of a host that did something else."""
    if outcomes[outcome] != count:
        raise RuntimeError(f"{count} messages were to be {outcome}, it was {outcomes}")


def compared(measured: dict[str, Measured]) -> dict[str, dict[str, float]]:
    """Return what a changed sidecar costs against a full sync."""
    rows = {}
    for name, full in measured.items():
        if name.startswith("30-s clip"):
            again = measured[name.replace("30-s clip", "changed sidecar")]
            rows[name.partition(", ")[2]] = {
                "full sync, CPU ms": full.ours_ms,
                "re-fused, CPU ms": again.ours_ms,
                "times less CPU": full.ours_ms / again.ours_ms,
                "times faster": again.clips_per_s / full.clips_per_s,
            }
    return rows


def summary(rounds: Sequence[Measured]) -> Measured:
    """Return the best speed of the rounds, and the median of everything else."""
    best = max(rounds, key=lambda each: each.clips_per_s)
    roles = {role for each in rounds for role in each.cpu_ms}
    cpu_ms = {role: median(each.cpu_ms.get(role, 0.0) for each in rounds) for role in roles}
    return replace(best, cpu_ms=cpu_ms)


def options_of() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usable = len(os.sched_getaffinity(0))
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=400, help="sounds that differ")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--width", type=float, default=0.4)
    parser.add_argument("--shipped", action="store_true", help="the shipped encoder, with sidecars")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-s", type=float)
    parser.add_argument("--bucket", choices=[FOLDER, S3, "both"], default="both")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS)
    parser.add_argument("--refused", type=int, default=60, help="messages of the sidecar's row")
    parser.add_argument(
        "--processes", nargs="+", type=int, default=[1], help="that take messages, of each host"
    )
    parser.add_argument(
        "--cores", nargs="+", type=int, help="of each host and its servers together; default: all"
    )
    parser.add_argument("--json", type=Path, help="where to write the figures as JSON")
    parser.add_argument(
        "--figures", type=Path, help="where to write what audiofuse plan --figures computes from"
    )
    parser.add_argument("--write-model", action="store_true", help="into deploy/capacity.md")
    options = parser.parse_args()
    options.cores = options.cores or [usable] * len(options.processes)
    if len(options.cores) != len(options.processes):
        parser.error("give as many --cores as --processes")
    if max(options.cores) > usable:
        parser.error(f"there are {usable} cores")
    if max(options.processes) > 1 and "processes" not in Settings.model_fields:
        parser.error("a host has one process that takes messages")
    return options


def written(measured: dict[str, Measured], options: argparse.Namespace) -> None:
    """Write the page's block, and figures, from the rows of the first size of a host."""
    found: dict[str, dict[str, Measured]] = {"free": {}, "worker": {}}
    for name, each in measured.items():
        kind, *of = name.split(", ")
        if kind in found:
            found[kind].setdefault(of[0], each)
    day, arguments = datetime.now(tz=UTC).date().isoformat(), shlex.join(sys.argv[1:])
    told = (
        f"Measured on {day}, a host of {options.processes[0]} message process(es) on "
        f"{options.cores[0]} cores with its servers:\n`make bench-worker ARGS='{arguments}'`."
    )
    of_both = found["free"], found["worker"], options.seconds
    if options.figures:
        told_short = f"{day}, {options.cores[0]} cores: make bench-worker ARGS='{arguments}'"
        written_figures = figures(*of_both, told_short)
        options.figures.write_text(json.dumps(written_figures, indent=2) + "\n")
    if options.write_model:
        write_model(model(*of_both, told))


def main() -> None:
    """Measure and print the tables."""
    options = options_of()
    console = Console()
    measured: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory(prefix="audiofuse-bench-") as temporary:
        race = Race(Path(temporary), options)
        try:
            for number in range(options.rounds):
                for name, measure in race.variants(options.rows).items():
                    console.log(f"round {number + 1}: {name}")
                    for row, each in measure().items():
                        measured.setdefault(row, []).append(each)
        finally:
            race.rig.stop()
    show({name: summary(rounds) for name, rounds in measured.items()}, options, console)


def show(measured: dict[str, Measured], options: argparse.Namespace, console: Console) -> None:
    """Print the tables, and write what was asked for."""
    encoder = "shipped encoder" if options.shipped else f"width {options.width}"
    title = f"{encoder}, {options.seconds:.0f}-s clips"
    console.print(metrics_table(f"{title}: speed", rates(measured)))
    console.print(metrics_table(f"{title}: CPU ms a message", costs(measured)))
    if again := compared(measured):
        console.print(metrics_table("a changed sidecar, shipped encoder, 30-s clips", again))
    for name, each in measured.items():
        if each.mib:
            processes = ", ".join(f"{count} {role}" for role, count in each.processes.items())
            memory = ", ".join(f"{mib:.0f}" for mib in each.mib)
            console.print(f"{name}: {processes}; host's memory {memory} MiB")
    if options.json:
        figures = {
            name: {
                "clips/s": each.clips_per_s,
                "CPU ms": dict(each.cpu_ms),
                "ours": each.ours_ms,
                "MiB": each.mib,
            }
            for name, each in measured.items()
        }
        options.json.write_text(json.dumps(figures, indent=2))
    if options.write_model or options.figures:
        written(measured, options)


if __name__ == "__main__":
    main()
