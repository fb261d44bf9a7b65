"""Makes the pictures of README.md anew: ``make pictures``; needs chromium and prometheus.

Starts what ``make up`` starts, for the sounds of the demo, and takes a picture of the search page;
then uploads, breaks and asks for some minutes, while a Prometheus watches, and draws Grafana's
overview (docs/board.py). The pictures are real: only the traffic is made up.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from board import WIDTH, page
from playwright.sync_api import Browser, sync_playwright

from audiofuse.core.items import is_audio
from audiofuse.core.settings import Settings
from audiofuse.workers.deployment.local import LocalDeployment, free_port

ROOT = Path(__file__).resolve().parents[1]
SOUNDS = ROOT / "examples" / "sounds"
IMAGES = ROOT / "docs" / "images"
OVERVIEW = ROOT / "deploy" / "grafana" / "dashboards" / "overview.json"
RULES = ROOT / "deploy" / "prometheus" / "rules"
QUESTION = "a rooster crowing at dawn"
QUESTIONS = (QUESTION, "an infant wailing", "old record player noise", "water flowing from a tap")
SPAN_S = 240  # of the traffic, and of what the graphs show
STEP_S = 2
PAGE = {"width": 1180, "height": 734}  # what is seen of the search page, pixels
PATIENCE_S = 180


def main() -> None:
    """Make both."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="audiofuse-pictures-") as folder:
        home, bucket = Path(folder, "home"), Path(folder, "sounds")
        shutil.copytree(SOUNDS, bucket)
        with (
            LocalDeployment(Settings(home=home, bucket=str(bucket))) as deployment,
            prometheus(deployment.targets, Path(folder)) as metrics,
            chromium() as browser,
        ):
            url = deployment.settings.search_url
            wait_for_sounds(metrics)
            search_page(browser, url)
            traffic(bucket, url)
            draw = page(OVERVIEW, lambda expr, instant: query(metrics, expr, instant), SPAN_S)
            dashboard(browser, draw)


@contextmanager
def prometheus(targets: Path, folder: Path) -> Iterator[str]:
    """Watch the targets with the deployment's own rules, each second; yield the address."""
    url = f"127.0.0.1:{free_port()}"
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [f"{RULES}/*.yml"],
        "scrape_configs": [
            {"job_name": "audiofuse", "file_sd_configs": [{"files": [str(targets)]}]}
        ],
    }
    path = folder / "prometheus.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    storage = f"--storage.tsdb.path={folder}/prometheus"
    command = ["prometheus", f"--config.file={path}", storage, f"--web.listen-address={url}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://{url}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run the browser that the machine has."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


def query(url: str, expr: str, instant: bool) -> list[dict[str, Any]]:  # noqa: FBT001
    """Ask Prometheus, for now or for the whole span."""
    now = time.time()
    period = {} if instant else {"start": now - SPAN_S, "end": now, "step": STEP_S}
    path = "query" if instant else "query_range"
    answer = httpx.get(f"{url}/api/v1/{path}", params={"query": expr} | period, timeout=30)
    return list(answer.raise_for_status().json()["data"]["result"])


def wait_for_sounds(metrics: str) -> None:
    """Wait until every example is in the index."""
    wanted = sum(is_audio(path.name) for path in SOUNDS.rglob("*"))
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = query(metrics, 'sum(audiofuse_items{role="live"})', instant=True)
        except httpx.TransportError:  # it has just been started
            found = []
        if found and int(float(found[0]["value"][1])) >= wanted:
            return
        if time.monotonic() > deadline:
            sys.exit(f"not all of {wanted} sounds are in the index after {PATIENCE_S} s: {found}")
        time.sleep(1)


def search_page(browser: Browser, url: str) -> None:
    """Ask a question in the page, wait until hits and waveforms are drawn, and take its picture."""
    shown = browser.new_page(viewport=PAGE, color_scheme="light")
    shown.goto(f"{url}/?q={QUESTION}")
    shown.wait_for_load_state("networkidle")
    shown.wait_for_timeout(3000)  # the waveforms, one after the other
    shown.screenshot(path=IMAGES / "search.png")
    shown.close()


def traffic(bucket: Path, url: str) -> None:
    """Upload, describe, break and ask, more in the middle than at the ends."""
    chance = random.Random(1)  # noqa: S311 - the same traffic each time
    sounds = sorted(path for path in SOUNDS.rglob("*") if is_audio(path.name))
    uploads = bucket / "uploads"
    uploads.mkdir()
    began, number = time.monotonic(), 0
    while (passed := time.monotonic() - began) < SPAN_S:
        busy = 1 - abs(2 * passed / SPAN_S - 1)
        for _ in range(chance.randint(0, round(1 + 4 * busy))):
            number += 1
            sound = chance.choice(sounds)
            shutil.copy(sound, uploads / f"{number:04}{sound.suffix}")
        if number % 7 == 0:
            (uploads / f"{number:04}.json").write_text(json.dumps({"title": f"take {number}"}))
        if number % 60 == 0:
            (uploads / f"{number:04}-cut.wav").write_bytes(sounds[0].read_bytes()[:2000])
        for _ in range(1 + round(3 * busy)):
            question = {"q": chance.choice(QUESTIONS)}
            httpx.get(f"{url}/v1/search", params=question, timeout=30).raise_for_status()
        time.sleep(chance.uniform(0.3, 0.9))


def dashboard(browser: Browser, drawn: str) -> None:
    """Take a picture of the drawn overview."""
    shown = browser.new_page(viewport={"width": WIDTH, "height": 400})
    shown.set_content(drawn)
    shown.screenshot(path=IMAGES / "dashboard.png", full_page=True)
    shown.close()


if __name__ == "__main__":
    main()
