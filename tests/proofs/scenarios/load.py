"""Scenarios of much at once: whole folders that go or come, long beside short, many descriptors."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Collection

import psutil
from deployment import BUCKET, WORKERS, Deployment, until
from stage import Content, Stage

from audiofuse.core.items import point_id
from audiofuse.core.settings import environment
from audiofuse.workers.repair.brake import LOST_ITEMS

HELD = 1100  # descriptors, more than the 1,024 at which select() ends
WALKS = 5  # of the index, however many files come: a new folder costs one
LONG_SOUNDS = 2
SHORT_EVERY_S = 0.2
SLOWER = 3.0  # beside long sounds a short one may take so many times what it takes alone


def bucket_replaced(stage: Stage) -> None:
    """Put an empty folder in the bucket's place, as a missing mount does; then put it back."""
    deployment = stage.deployment
    keys = [stage.new_key() for _ in range(max(LOST_ITEMS + 50, stage.number(300)))]
    for key in keys:
        stage.put(key, stage.sound())
    stage.settle()
    before = _found(stage, keys)
    there = deployment.root / BUCKET
    away = there.with_name("away")
    there.rename(away)
    there.mkdir()
    until(lambda: _held_back(deployment), "the brake, by the intake's own comparison")
    _, told = _run(deployment, "reconcile")
    until(deployment.idle, "quiet")
    gone = before - _found(stage, keys)
    there.rmdir()
    away.rename(there)
    until(lambda: not _held_back(deployment), "the end of the brake")
    assert not gone, f"{len(gone)} points went with the folder"
    assert "reconcile --remove" in told, f"what to do is not told: {told}"


def copied_by_rsync(stage: Stage) -> None:
    """Write many files as rsync does, each under a hidden name that is changed at the end."""
    folder = stage.deployment.root / BUCKET / stage.prefix
    folder.mkdir()
    for _ in range(stage.number(2000)):
        key, content = stage.new_key(), stage.sound()
        suffix = "".join(stage.random.choices("abcXYZ123", k=6))
        hidden = folder / f".{key.removeprefix(stage.prefix)}.{suffix}"
        hidden.write_bytes(content.data)
        stage.told += 1
        stage.truth[key] = content
        hidden.rename(stage.deployment.root / BUCKET / key)
    stage.settle()
    walks = stage.deployment.log("intake").count(f"compared {stage.prefix!r}")
    assert 1 <= walks <= WALKS, f"{walks} walks of the index for {len(stage.truth)} files"


def many_descriptors(stage: Stage) -> None:
    """Have one worker alone, which holds more descriptors than select() knows."""
    deployment, (name, other) = stage.deployment, WORKERS
    for each in WORKERS:
        deployment.stop_orderly(each)
    deployment.start(name, "crowded", held=HELD)
    stage.fill(60)
    stage.settle()
    held = psutil.Process(deployment.parts[name].process.pid).num_fds()
    deployment.stop_orderly(name)
    for each in (name, other):
        deployment.start(each)
    assert held > HELD, f"the worker held {held} descriptors only"


def long_beside_short(stage: Stage) -> None:
    """Upload short sounds at a steady pace, alone and then beside sounds of three hours each."""
    count = stage.number(30)
    alone = _p95_of_short(stage, count)
    hours = stage.long_sound(0, stage.number(3 * 3600))
    long = [stage.put(stage.new_key("wav"), hours) for _ in range(LONG_SOUNDS)]
    stage.pause(1)
    beside = _p95_of_short(stage, count)
    assert not _found(stage, long), "a long sound ended before the short ones"
    assert beside <= SLOWER * alone, f"p95 {alone:.2f} s alone, {beside:.2f} s beside long ones"


def _p95_of_short(stage: Stage, count: int) -> float:
    """Return the p95 of the seconds after which each of so many uploads is found."""
    sound = Content(min(stage.sounds, key=lambda path: path.stat().st_size).read_bytes())
    awaited: dict[str, float] = {}
    took: list[float] = []
    begun = time.monotonic()

    def all_found() -> bool:
        uploads = len(awaited) + len(took)
        if uploads < count and time.monotonic() >= begun + uploads * SHORT_EVERY_S:
            key = stage.new_key()
            awaited[key] = time.monotonic()
            stage.put(key, sound)
        found = _found(stage, awaited)
        took.extend(time.monotonic() - awaited.pop(key) for key in found)
        return len(took) == count

    until(all_found, "the short sounds")
    return statistics.quantiles(took, n=20)[-1]


def _found(stage: Stage, keys: Collection[str]) -> set[str]:
    """Return which of the keys have a point."""
    ids = {str(point_id(BUCKET, key)): key for key in keys}
    index = stage.deployment.index
    live = index.live()
    return {ids[id_] for id_ in index.get(live, list(ids))} if live else set()


def _held_back(deployment: Deployment) -> bool:
    code, output = _run(deployment, "status", "--json")
    assert code == 0, output
    return bool(json.loads(output)["held_back"])


def _run(deployment: Deployment, *command: str) -> tuple[int, str]:
    """Run a command of the operator; return its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "audiofuse", *command],
        env=os.environ | environment(deployment.settings),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


IN_A_FOLDER = (bucket_replaced, copied_by_rsync)
SCENARIOS = (many_descriptors, long_beside_short, *IN_A_FOLDER)
