"""A hot swap under load, with everything killed on the way: ``make rollout``.

Sounds are uploaded, replaced and deleted, and three clients ask without a pause, while a new
encoder is started, built, promoted, rolled back, promoted again and the old one dropped. In every
phase a worker is killed, and the command that takes the step. Ten swaps more show what stays in a
worker's memory. No query may fail, no answer may mix versions; the live generation ends as the
bucket is. Everything is real: Valkey, S3 and SQS over HTTP, workers, service, embedded Qdrant.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
from deployment import BUCKET, SOUNDS, WORKERS, Deployment, until
from rich.console import Console
from rich.table import Table
from stage import wave_file
from typer.testing import CliRunner

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.items import is_audio, point_id
from audiofuse.core.model.config import TINY
from audiofuse.core.settings import environment
from audiofuse.workers.commands.rollout import rollout_cli
from audiofuse.workers.deployment.local import free_port

REGISTRY = "encoders"  # a bucket of its own
CLIENTS = 3
CLIP_S = 1.0
QUESTIONS = ("a dog barks", "rain on a roof", "somebody knocks", "an owl at night")
COMMAND_S = 240
LET_GO_S = 3.0  # after which workers have noticed that a version was dropped
SHOWN = 5

console = Console(width=120)


class Proof(Deployment):
    """The chaos's deployment with a query service, and the registry on S3."""

    def _s3(self) -> dict[str, Any]:
        self._ports["search"] = free_port()
        url = f"http://127.0.0.1:{self._ports['search']}"
        return super()._s3() | {"registry": f"s3://{REGISTRY}/all", "search_url": url}

    def _create_bucket(self) -> bool:
        self.s3.create_bucket(Bucket=REGISTRY)
        return super()._create_bucket()

    def _command(self, name: str) -> list[str]:
        if name == "search":
            port = str(self._ports["search"])
            module = "audiofuse.workers.commands.main"
            return [sys.executable, "-m", module, "serve", "--port", port]
        return super()._command(name)

    def run(self, *command: str) -> tuple[int, str]:
        """Run a command of the operator in this process; return exit code and output."""
        with patch.dict(os.environ, environment(self.settings)):
            done = CliRunner().invoke(rollout_cli, command)
        return done.exit_code, f"{done.output}{done.exception or ''}"

    def start_command(self, *command: str) -> subprocess.Popen[str]:
        """Start a command of the operator, to be killed."""
        variables = os.environ | environment(self.settings) | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "audiofuse", "rollout", *command],
            env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


@dataclass
class Traffic:
    """Changes of the bucket, and queries; and what became of them."""

    proof: Proof
    rate: float  # changes a second
    clips: list[bytes]
    random: random.Random
    truth: dict[str, bytes] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    freshness: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    phase: str = "before"
    _awaited: dict[str, tuple[str, float, str]] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    def fill(self, count: int) -> None:
        """Upload so many sounds."""
        for number in range(count):
            self._put(f"{number:05}.wav")

    @contextmanager
    def running(self, *, changing: bool = True) -> Iterator[None]:
        """Ask all the while, and change."""
        changes = [self._change, self._watch] if changing else []
        jobs = [*changes, *[self._ask] * CLIENTS]
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            for thread in threads:
                thread.join()

    def _put(self, key: str) -> str:
        content = self.random.choice(self.clips)
        answer = self.proof.s3.put_object(Bucket=BUCKET, Key=key, Body=content)
        self.truth[key] = answer["ETag"].strip('"')
        return self.truth[key]

    def _change(self) -> None:
        """Upload, replace and delete."""
        number = 0
        while not self.stopping.wait(self.random.expovariate(self.rate)):
            number += 1
            kind = self.random.choices(["new", "replace", "delete"], [5, 3, 2])[0]
            if kind == "new":
                key = f"new-{number:05}.wav"
                self._awaited[key] = (self._put(key), time.monotonic(), self.phase)
                continue
            key = self.random.choice(sorted(self.truth))
            self._awaited.pop(key, None)
            if kind == "replace":
                self._put(key)
            else:
                self.proof.s3.delete_object(Bucket=BUCKET, Key=key)
                del self.truth[key]
                self.gone.add(key)

    def _watch(self) -> None:
        """Note when uploads are in what is searched."""
        while not self.stopping.wait(0.1):
            awaited = {str(point_id(BUCKET, key)): key for key in list(self._awaited)}
            live = self.proof.index.live()
            points = self.proof.index.get(live, list(awaited)) if live else {}
            for id_, point in points.items():
                etag, since, phase = self._awaited.get(awaited[id_], ("", 0.0, ""))
                if point.payload["etag"] == etag and self._awaited.pop(awaited[id_], None):
                    self.freshness.setdefault(phase, []).append(time.monotonic() - since)

    def _ask(self) -> None:
        asking = random.Random(threading.get_ident())
        with httpx.Client(base_url=self.proof.settings.search_url, timeout=30) as client:
            while not self.stopping.wait(0.05):
                try:
                    parameters = {"q": asking.choice(QUESTIONS), "limit": 10}
                    answer = client.get("/v1/search", params=parameters)
                    answer.raise_for_status()
                    found = answer.json()
                except (httpx.HTTPError, ValueError) as error:
                    self.failures.append(f"{self.phase}: {error!r}")
                    continue
                self._judge(found)

    def _judge(self, found: dict[str, Any]) -> None:
        versions = {hit["payload"]["encoder"] for hit in found["hits"]}
        if versions - {found["encoder"]} or len(found["hits"]) < 10:
            self.mixed.append(f"{self.phase}: {found['encoder']} with {versions}")
        self.answers[found["encoder"]] = self.answers.get(found["encoder"], 0) + 1


class Play:
    """The steps, each with a worker and the command that takes it killed."""

    def __init__(self, proof: Proof, traffic: Traffic, *, kill: bool) -> None:
        """Kill, or only play."""
        self._proof = proof
        self._traffic = traffic
        self._kill = kill
        self.seconds: dict[str, float] = {}

    def step(self, name: str, reached: Callable[[], bool], *command: str, again: str = "") -> None:
        """Take a step until it is reached, however often its command is killed."""
        self._traffic.phase = name
        started = time.monotonic()
        if self._kill:
            self._kill_worker()
            self._run_for(self._traffic.random.uniform(2, 8), *command)
        while not reached():
            open_ = again and open_registry(self._proof.settings).rollout()[0]
            words = [again] if open_ and open_.other else command
            code, output = self._proof.run(*words)
            if code and not reached():
                console.print(f"{name}: {' '.join(words)}: {output[-600:]}")
                time.sleep(1)
            if time.monotonic() - started > COMMAND_S:
                raise TimeoutError(name)
        self.seconds[name] = time.monotonic() - started

    def _run_for(self, seconds: float, *command: str) -> None:
        process = self._proof.start_command(*command)
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    def _kill_worker(self) -> None:
        name = self._traffic.random.choice(WORKERS)
        self._proof.kill(name)
        self._proof.start(name)


def cut_clips(count: int, chance: random.Random) -> list[bytes]:
    """Cut real sounds into clips, each a WAV file."""
    sounds = []
    for path in sorted(path for path in SOUNDS.rglob("*") if is_audio(path.name)):
        with open_recording(path, 600) as recording:
            sounds.append(np.concatenate([*recording.windows()]))
    long = [sound for sound in sounds if sound.size > CLIP_S * SAMPLE_RATE]
    return [_wav(chance.choice(long), chance) for _ in range(count)]


def _wav(sound: np.ndarray[Any, Any], chance: random.Random) -> bytes:
    length = int(CLIP_S * SAMPLE_RATE)
    start = chance.randrange(sound.size - length)
    return wave_file(sound[start : start + length])


def play(proof: Proof, traffic: Traffic, versions: tuple[str, str], *, kill: bool) -> Play:
    """Go through a whole rollout."""
    old, new = versions
    registry = open_registry(proof.settings)

    def live_is(version: str) -> bool:
        live, rollout = proof.index.live(), registry.rollout()[0]
        return bool(rollout) and live is not None and live.version == rollout.live == version

    built: list[bool] = []

    def is_built() -> bool:
        """Have ``resume`` end by itself."""
        if built:
            return True
        rollout, _ = registry.rollout()
        if rollout and rollout.other:
            _, output = proof.run("resume")
            if "has everything" in output.replace("\n", " "):
                built.append(True)
        return bool(built)

    steps = Play(proof, traffic, kill=kill)
    forced = ["--force", "quality"]
    steps.step("start", is_built, "start", new)
    steps.step("promote", lambda: live_is(new), "promote", *forced)
    steps.step("rollback", lambda: live_is(old), "rollback")
    steps.step("promote again", lambda: live_is(new), "promote", *forced)
    steps.step("drop", lambda: _only(proof, new), "drop")
    return steps


def swap(proof: Proof, count: int) -> list[int]:
    """Exchange the encoder so often; return what the larger worker has in memory after each."""
    memory = []
    for number in range(count):
        encoder = Encoder.random(TINY, seed=1)  # its audio vectors are those that are stored
        bundle = save_bundle(encoder, proof.root / "made", f"swap{number}", "")
        version = open_registry(proof.settings).publish(bundle)
        for words in (["start", version], ["promote", "--force", "quality"], ["drop"]):
            code, output = proof.run(*words)
            if code:
                raise RuntimeError(f"swap {number}: {' '.join(words)}: {output}")
        time.sleep(LET_GO_S)
        memory.append(max(map(proof.memory, WORKERS)))
    return memory


def _only(proof: Proof, version: str) -> bool:
    rollout, _ = open_registry(proof.settings).rollout()
    left = [each.version for each in proof.index.generations()]
    if rollout and not rollout.other and left != [version]:
        proof.run("status")  # any command finishes the one that was killed
    return bool(rollout) and not rollout.other and left == [version]


def differences(proof: Proof, traffic: Traffic) -> tuple[list[str], list[str]]:
    """Return which keys are missing or outdated, and which are there though they were deleted."""
    live = proof.index.live()
    assert live
    points = {
        point.payload["key"]: point.payload["etag"]
        for point in proof.index.scroll(live, ["key", "etag"])
    }
    missing = [key for key, etag in traffic.truth.items() if points.get(key) != etag]
    return missing, sorted(points.keys() - traffic.truth.keys())


def p95(values: list[float]) -> float:
    """Return the 95th percentile, or infinity of nothing."""
    return statistics.quantiles(values, n=20)[-1] if len(values) > 1 else float("inf")


def report(
    traffic: Traffic, steps: Play, memory: list[int], wrong: tuple[list[str], list[str]]
) -> bool:
    """Print what happened; return whether all is well."""
    before = p95(traffic.freshness.get("before", []))
    others = (values for name, values in traffic.freshness.items() if name != "before")
    during = [each for values in others for each in values]
    table = Table("what", "figure", box=None)
    for name, seconds in steps.seconds.items():
        fresh = traffic.freshness.get(name, [])
        found = f"{seconds:.1f}, freshness p95 {p95(fresh):.2f} s ({len(fresh)})"
        table.add_row(f"{name}, seconds", found)
    facts = {
        "items at the end": len(traffic.truth),
        "deleted": len(traffic.gone),
        "answers by version": traffic.answers,
        "failed queries": len(traffic.failures),
        "answers that mix versions, or lack hits": len(traffic.mixed),
        "missing or outdated": len(wrong[0]),
        "resurrected": len(wrong[1]),
        "uploads before, during": f"{len(traffic.freshness.get('before', []))}, {len(during)}",
        "freshness p95 before": f"{before:.2f} s",
        "freshness p95 during": f"{p95(during):.2f} s, {p95(during) / before:.2f}x",
        "a worker's MiB after each swap": ", ".join(f"{each / 2**20:.0f}" for each in memory),
    }
    for name, fact in facts.items():
        table.add_row(name, str(fact))
    console.print(table)
    for lines in (traffic.failures, traffic.mixed, *wrong):
        for line in lines[:SHOWN]:
            console.print(line)
    return not any((traffic.failures, traffic.mixed, *wrong))


def main() -> int:
    """Play, compare, report; the exit code says whether all is well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sounds", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=200, help="changes a minute")
    parser.add_argument("--before", type=float, default=60, help="seconds of traffic before")
    parser.add_argument("--swaps", type=int, default=10, help="how many more, for the memory")
    parser.add_argument("--no-kill", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    clips = cut_clips(max(20, options.sounds // 4), chance)
    with tempfile.TemporaryDirectory(prefix="audiofuse-") as folder:
        proof = Proof(Path(folder, "rollout"), s3=True)
        try:
            return _main(proof, Traffic(proof, options.rate / 60, clips, chance), options)
        finally:
            proof.stop()


def _main(proof: Proof, traffic: Traffic, options: argparse.Namespace) -> int:
    registry = open_registry(proof.settings)
    candidate = save_bundle(Encoder.random(TINY, seed=1), proof.root / "made", "tiny", "")
    versions = (registry.publish(proof.settings.encoder), registry.publish(candidate))
    proof.start("search")
    traffic.fill(options.sounds)
    until(lambda: proof.index.count(proof.index.live()) == options.sounds, "the sounds", 600)
    url = proof.settings.search_url
    until(lambda: httpx.get(f"{url}/v1/search", params={"q": "a dog"}).is_success, "the service")
    with traffic.running():
        time.sleep(options.before)
        steps = play(proof, traffic, versions, kill=not options.no_kill)
        traffic.phase = "swaps"
        memory = swap(proof, options.swaps)
    until(lambda: proof.idle() and not any(differences(proof, traffic)), "agreement", 90)
    return 0 if report(traffic, steps, memory, differences(proof, traffic)) else 1


if __name__ == "__main__":
    sys.exit(main())
