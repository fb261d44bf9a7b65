"""Rows: what a user sees of a deployment that is up."""

import json
import re
import shlex
import time
from typing import Any

import httpx
from images import ROOT
from stack import SEARCH, Stack

SOUNDS = ROOT / "examples" / "sounds"
OWL = SOUNDS / "animals" / "owl.wav"
NO_SOUNDS = {".json", ".md"}
ALSO_NAMED = ('search "rain on a roof"', "status", "dead list", "rollout status")
INTAKE_TELLS = (
    "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
)


def up(stack: Stack) -> str:
    """From built images, nothing overridden, all healthy."""
    started = time.monotonic()
    stack.compose("up", "--wait", "--detach", "--no-build")
    seconds = time.monotonic() - started
    assert not stack.unhealthy(), stack.unhealthy()
    assert seconds <= 120 * stack.patience, f"{seconds:.0f} s"
    return f"{seconds:.0f} s"


def by_event(stack: Stack) -> str:
    """Upload: it is found, and it was an event that told of it."""
    before = _events(stack)
    stack.upload("proof/event.wav", OWL)
    seconds = stack.until(lambda: stack.found("proof/event.wav"), "found by search", 10)
    told = _events(stack) - before
    assert told == 1, f"{told} events of the webhook, not 1"
    lines = _lines(stack, "worker")
    line = next(each for each in lines if each["message"].startswith("proof/event.wav:"))
    assert line["lane"] == "live", line
    shown = stack.operator("search", "an owl", "--json")
    assert "proof/event.wav" in shown, shown
    return f"{seconds:.1f} s; 1 event of the webhook; {line['message']}"


def _events(stack: Stack) -> float:
    text = stack.compose("exec", "--no-TTY", "intake", "python", "-c", INTAKE_TELLS)
    lines = [
        line for line in text.splitlines()
        if line.startswith("audiofuse_events_total{") and 'source="webhook"' in line
        and "handed_over" in line
    ]  # fmt: skip
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def _lines(stack: Stack, service: str) -> list[dict[str, Any]]:
    texts = (line.partition("| ")[2] for line in stack.logs(service).splitlines())
    return [json.loads(text) for text in texts if text.startswith("{")]


def examples(stack: Stack) -> str:
    """All example sounds with their sidecars, and a file that is none."""
    files = {x.relative_to(SOUNDS).as_posix(): x for x in SOUNDS.rglob("*") if x.is_file()}
    sounds = {key for key, path in files.items() if path.suffix not in NO_SOUNDS}
    for key, path in files.items():
        if path.suffix != ".md":
            stack.upload(key, path)
    stack.upload("proof/bad.wav", b"RIFF, but no sound")
    seconds = stack.until(lambda: sounds <= stack.keys(), "all found", 120)
    owl = stack.search("an owl", prefix="animals/owl.wav")[0]
    assert owl["payload"]["title"], owl
    stack.until(lambda: "proof/bad.wav" in letters(stack), "a letter", 60)
    reason = letters(stack)["proof/bad.wav"]
    assert reason == "not_audio", reason
    return f"{len(sounds)} in {seconds:.0f} s; bad.wav: {reason}"


def documented(stack: Stack) -> str:
    """Run what the pages have one type on a machine with Docker alone, but for `up`."""
    text = "".join((ROOT / page).read_text() for page in ("README.md", "deploy/operations.md"))
    lines = dict.fromkeys(re.findall(r"^\./audiofuse (?!up\b)(.+?)(?: +#.*)?$", text, re.MULTILINE))
    said = {}
    for line in (*lines, *ALSO_NAMED):
        words = [word.replace("~/my/sounds", str(SOUNDS)) for word in shlex.split(line)]
        said[line] = stack.shell([str(ROOT / "audiofuse"), *words])
    assert "animals/owl.wav" in said["try"], said["try"]
    assert '"animals/owl.wav"' in stack.operator("search", "an owl", "--json")
    return f"{len(said)} commands: {', '.join(said)}"


def letters(stack: Stack) -> dict[str, str]:
    """Return the reason of each dead letter by its key."""
    lines = stack.operator("dead", "list", "--json").splitlines()
    return {each["key"]: each["reason"] for each in map(json.loads, lines)}


def links(stack: Stack) -> str:
    """Open a hit's link from here, and the page."""
    hit = stack.search("an owl", prefix="proof/event.wav")[0]
    answer = httpx.get(hit["audio_url"], timeout=20)
    assert answer.content == OWL.read_bytes(), answer.status_code
    page = httpx.get(SEARCH, timeout=20)
    assert page.is_success, page.status_code
    return "a hit's link and the page open"
