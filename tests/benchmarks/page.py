"""How soon the search page shows something: ``make bench-page``; needs chromium.

On an embedded index that is a process of its own, with points of the shipped encoder's shape that
lie in groups, and ``audiofuse serve``. For each step: seconds from the click, or from the address,
until it is seen, in a browser that has been there before; and of the map also when it is first
drawn by a service that has just started.
"""

import argparse
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from playwright.sync_api import Page, sync_playwright
from query import PATIENCE_S, SERVE, process, question
from query import point as point_of
from rich.console import Console
from rich.table import Table

import audiofuse.core.index.index
from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.loading import load_encoder
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.starting import DEFAULT_NAME, default_card, default_encoder
from audiofuse.core.index.index import Generation, Index, Point, connect
from audiofuse.core.settings import Settings
from audiofuse.workers.deployment.local import free_port

BATCH, GROUPS = 500, 40
FINAL = "() => document.querySelector('#map .said').textContent.endsWith(' sounds')"
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def fill(index: Index, generation: Generation, encoder: Encoder, count: int) -> None:
    """Write points whose vectors lie around forty centres, each with a label of its own."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((GROUPS, encoder.dim))
    for first in range(0, count, BATCH):
        points = [point_of(random, encoder, n) for n in range(first, min(count, first + BATCH))]
        index.upsert(generation, [_grouped(each, centres, n) for n, each in enumerate(points)])


def _grouped(point: Point, centres: np.ndarray, number: int) -> Point:
    group = number % GROUPS
    item = np.array(point.item) * np.sqrt(len(point.item)) + centres[group]
    payload = {**point.payload, "labels": [f"Label {group}"]}
    return Point(point.id, payload, (item / np.linalg.norm(item)).tolist(), point.audio)


def seen(page: Page, act: Callable[[], object], selector: str) -> float:
    """Return the seconds from an act until what it is for is seen."""
    started = time.perf_counter()
    act()
    page.locator(selector).first.wait_for(timeout=PATIENCE_S * 1000)
    return time.perf_counter() - started


def measure(url: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each step, round by round."""
    took: dict[str, list[float]] = {}
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 800})
        hits = "#results:not([aria-busy]) .hit"
        for number in range(-1, rounds):  # the first of them is not counted

            def note(step: str, seconds: float, number: int = number) -> None:
                if number >= 0:
                    took.setdefault(step, []).append(seconds)

            note("newest sounds", seen(page, lambda: page.goto(url), hits))
            note("first paint", page.evaluate(PAINTED) / 1000)
            page.locator("#facets").wait_for(timeout=PATIENCE_S * 1000)
            page.get_by_role("searchbox").fill(question(number + 1))
            note("answers", seen(page, lambda: page.keyboard.press("Enter"), hits))
            if number < 0:
                cold = seen(page, page.get_by_role("link", name="Map").click, "#map .groups li")
                took["map, first drawn"] = [cold]
                started = time.perf_counter()
                page.wait_for_function(
                    FINAL,
                    timeout=PATIENCE_S * 1000,
                )
                took["map, final after"] = [cold + time.perf_counter() - started]
            else:
                note("map", seen(page, lambda: page.goto(f"{url}/?view=map"), "#map .groups li"))
        browser.close()
    return took


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    audiofuse.core.index.index.TIMEOUT_S = PATIENCE_S
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="audiofuse-")))
        bundle = save_bundle(default_encoder(), home, DEFAULT_NAME, default_card())
        port, search_port = free_port(), free_port()
        settings = {
            "home": str(home), "encoder": str(bundle), "index_name": "bench",
            "qdrant_url": f"http://127.0.0.1:{port}", "qdrant_api_key": secrets.token_hex(),
        }  # fmt: skip
        command = ["-m", "audiofuse", "serve-index", "--port", str(port)]
        stack.enter_context(process(command, settings, f"http://127.0.0.1:{port}/readyz"))
        encoder, version = load_encoder(Settings(**settings))
        index = Index(connect(settings["qdrant_url"], settings["qdrant_api_key"]), "bench")
        fill(index, index.create(version, encoder), encoder, options.items)
        url = f"http://127.0.0.1:{search_port}"
        serve = ["-c", SERVE, str(PATIENCE_S), "service", "--port", str(search_port)]
        stack.enter_context(process(serve, settings, f"{url}/readyz"))
        table = Table("", "p50 s", "slowest s", title=f"{options.items} items")
        for step, seconds in measure(url, options.rounds).items():
            table.add_row(step, f"{median(seconds):.2f}", f"{max(seconds):.2f}")
        Console().print(table)


if __name__ == "__main__":
    main()
