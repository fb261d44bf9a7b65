"""Rows: parts that are killed, stopped, lost, and what is back afterwards."""

import itertools
import re
import tempfile
import time
import wave
from pathlib import Path

from images import ROOT, console, docker
from rows_use import OWL, letters
from stack import Stack

KILLED = ("s3", "valkey", "qdrant", "intake", "reconcile", "worker", "search", "exporter",
          "prometheus", "grafana")  # fmt: skip
ORDERLY = {"qdrant": r"SIGTERM received", "valkey": r"(?i)bye bye",
           "s3": r"(?i)shut(ting)? ?down|stopped|interrupt"}  # fmt: skip


def killed(stack: Stack) -> str:
    """Each service killed, an upload during each: healthy again, and the upload is found."""
    took = {}
    for service in KILLED:
        before = _starts(stack, service)
        stack.kill(service)
        key = f"proof/killed-{service}.wav"
        stack.upload(key, OWL)
        stack.until(lambda b=before, s=service: _starts(stack, s) != b, f"{service} again", 60)
        healthy = stack.until_healthy(60)
        found = stack.until(lambda k=key: stack.found(k), f"{key} found", 60)
        took[service] = f"{service} {healthy:.0f}+{found:.0f}"
        console.print("  killed", took[service])
    return ", ".join(took.values()) + " s"


def restarted(stack: Stack) -> str:
    """Only storage, and only intake, started again: the next upload is found by its event."""
    took = []
    for service in ("s3", "intake"):
        stack.compose("restart", service)
        stack.until_healthy(60)
        key = f"proof/restarted-{service}.wav"
        stack.upload(key, OWL)
        took.append(f"{service} {stack.until(lambda k=key: stack.found(k), key, 60):.0f} s")
    return ", ".join(took)


def _starts(stack: Stack, service: str) -> list[str]:
    return [
        each["State"]["StartedAt"]
        for each in stack.containers(service).values()
        if each["State"]["Running"]
    ]


def stop_start(stack: Stack) -> str:
    """Stop and start, take down and bring up: the same items, the same encoder."""
    before, live = stack.keys(), stack.live()
    took = []
    for commands in ((["stop"], ["start"]), (["down"], ["up", "--wait", "--detach", "--no-build"])):
        started = time.monotonic()
        for command in commands:
            stack.compose(*command)
        stack.until_healthy(120)
        took.append(f"{commands[0][0]}/{commands[1][0]} {time.monotonic() - started:.0f} s")
        assert stack.keys() == before, stack.keys() ^ before
        assert stack.live() == live
    return f"{len(before)} items, {live}; {', '.join(took)}"


def restored(stack: Stack) -> str:
    """Execute the code block of operations.md: the sounds stay, and everything comes back."""
    before, sounds, bad = stack.keys(), _sounds(stack), letters(stack)
    started = time.monotonic()
    execute(stack, "Restoring", 0)
    stack.until(lambda: stack.keys() == before, "all items", 60)
    stack.until(lambda: letters(stack) == bad, "all dead letters", 60)
    assert _sounds(stack) == sounds
    return f"{len(before)} items, {len(bad)} letters, {time.monotonic() - started:.0f} s"


def moved(stack: Stack) -> str:
    """Back up storage, lose every volume, and restore, by the blocks of operations.md."""
    before, sounds, live = stack.keys(), _sounds(stack), stack.live()
    started = time.monotonic()
    execute(stack, "Backing up", 0)
    stack.until_healthy(60)
    stack.down()
    execute(stack, "Restoring", 1)
    stack.until(lambda: stack.keys() == before, "all items", 60)
    assert _sounds(stack) == sounds
    assert stack.live() == live
    return f"{len(before)} items, {len(sounds)} objects, {time.monotonic() - started:.0f} s"


def execute(stack: Stack, section: str, number: int) -> None:
    """Execute a block of shell in a section of operations.md, as it stands there."""
    text = (ROOT / "deploy/operations.md").read_text().split(f"\n## {section}\n")[1]
    block = re.findall(r"```sh\n(.*?)```", text.split("\n## ")[0], re.DOTALL)[number]
    block = block.replace("audiofuse_", f"{stack.project}_")
    stack.shell(["bash", "-euc", block.replace("$PWD", str(stack.env_file.parent))])


def _sounds(stack: Stack) -> dict[str, str]:
    pages = stack.s3().get_paginator("list_objects_v2").paginate(Bucket="sounds")
    return {each["Key"]: each["ETag"] for page in pages for each in page.get("Contents", ())}


def orderly(stack: Stack) -> str:
    """Ask what keeps data to end: it does so in order."""
    seen = []
    for service, words in ORDERLY.items():
        before = len(stack.logs(service))
        stack.compose("stop", service)
        (each,) = stack.containers(service).values()
        log, code = stack.logs(service)[before:], each["State"]["ExitCode"]
        stack.compose("start", service)
        stack.until_healthy(60)
        said = re.search(words, log)
        assert said, f"{service} said {log[-500:]!r}"
        assert code in {0, 143}, f"{service} ended with {code}"
        seen.append(f"{service} {code}: {said[0]}")
    return ", ".join(seen)


def large_uploads(stack: Stack, kills: int) -> str:
    """Kill a worker again and again in large uploads: nothing is left, all are indexed."""
    keys = []
    with tempfile.TemporaryDirectory(prefix="audiofuse-large-") as name:
        file = Path(name) / "large.wav"
        _write_large(file)
        for number, pause_s in zip(range(kills), itertools.cycle((0.2, 0.5, 1, 2)), strict=False):
            before = _starts(stack, "worker")
            keys.append(f"proof/large-{number % 4}.wav")
            stack.upload(keys[-1], file)
            time.sleep(pause_s)  # the moment of the kill differs, and none is a bad one
            stack.kill("worker")
            stack.until(lambda b=before: _starts(stack, "worker") != b, "a new worker", 60)
            stack.until_healthy(120)
            console.print(f"  killed {number + 1} of {kills}")
    stack.until(lambda: set(keys) <= stack.keys(), "all found", 300)
    left = _scratch(stack)
    assert not left, left
    return f"{kills} kills, {len(set(keys))} files found, scratch is empty"


def _write_large(file: Path) -> None:
    """Write 90 MB of a sound: the owl, again and again."""
    with wave.open(str(OWL)) as owl:
        frames, shape = owl.readframes(owl.getnframes()), owl.getparams()
    with wave.open(str(file), "wb") as out:
        out.setparams(shape)
        for _ in range(90_000_000 // len(frames) + 1):
            out.writeframesraw(frames)


def _scratch(stack: Stack) -> set[str]:
    """Return the files that lie in the volume for what is passing."""
    listed = docker(
        "run", "--rm", "--network", "none", "--volume", f"{stack.project}_scratch:/scratch",
        "--entrypoint", "find", "audiofuse:cpu", "/scratch", "-type", "f",
    )  # fmt: skip
    return set(listed.split())
