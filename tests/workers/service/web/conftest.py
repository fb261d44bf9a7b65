"""The page in a real browser, on a real service over a bucket of four sounds."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from search_page import SOUNDS, Bucket

from audiofuse.core.encoder.encoder import Encoder

KEYS = ("music/gong.ogg", "music/cowbell.flac", "music/piano.wav", "animals/owl.wav")
SIDECARS = ("music/gong.json", "music/piano.wav.json", "animals/owl.json")
PATIENCE_MS = 20_000
Serving = Callable[[FastAPI], AbstractContextManager[str]]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Encoder) -> Iterator[Bucket]:
    """Return a bucket with four sounds, three of them with words."""
    root = tmp_path_factory.mktemp("web") / "sounds"
    for sidecar in SIDECARS:
        (root / sidecar).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOUNDS / sidecar, root / sidecar)
    bucket = Bucket(root, tiny_encoder)
    for key in KEYS:
        bucket.add(key)
    yield bucket
    bucket.decoders.close()


@pytest.fixture(scope="module")
def url(bucket: Bucket, serving: Serving) -> Iterator[str]:
    """Serve the bucket to everybody."""
    with serving(bucket.app()) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Run Chromium; without one the test is skipped."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium (Debian package chromium)")
    options = ["--mute-audio", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Return a new browser profile; the page may complain of nothing and ask nobody else."""
    context = browser.new_context(viewport={"width": 1000, "height": 800})
    context.set_default_timeout(PATIENCE_MS)
    complaints: list[str] = []
    hosts: set[str] = set()
    context.on("weberror", lambda error: complaints.append(str(error.error)))
    context.on("console", lambda said: _note_policy(said.text, complaints))
    context.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    yield context
    context.close()
    assert not complaints
    assert len(hosts) <= 1


def _note_policy(said: str, complaints: list[str]) -> None:
    if "Content Security Policy" in said:
        complaints.append(said)


@pytest.fixture
def page(context: BrowserContext, url: str) -> Page:
    """Return the page as one finds it."""
    page = context.new_page()
    page.goto(url)
    return page


@pytest.fixture(autouse=True, scope="module")
def _patience() -> Iterator[None]:
    """Wait longer than Playwright does by itself: other tests may have the cores."""
    expect.set_options(timeout=PATIENCE_MS)
    yield
    expect.set_options(timeout=5_000)
