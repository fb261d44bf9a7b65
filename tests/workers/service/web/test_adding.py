"""Adding sounds on the page, where the service takes them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from playwright.sync_api import BrowserContext, Locator, Page, expect
from pydantic import SecretStr
from search_page import SOUNDS, Bucket

WRITER = "may-upload-0123456789"
ADDED = "music/piano.wav"
DROP = """(zone) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File(["x"], "notes.txt"));
    zone.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def adding(
    bucket: Bucket, valkey_url: str, serving: Callable[[FastAPI], AbstractContextManager[str]]
) -> Iterator[str]:
    """Serve the bucket to whoever has a key; one may add to it."""
    keys = SecretStr(f"ann:{WRITER}:search+repair+upload")
    app = bucket.app(keys, uploads=True, max_object_bytes=2**20, broker_url=SecretStr(valkey_url))
    with serving(app) as url:
        yield url


@pytest.fixture
def page(context: BrowserContext, adding: str) -> Page:
    """Return the page after its key was given, in the view that adds."""
    page = context.new_page()
    page.goto(adding)
    expect(page.get_by_role("link", name="Add")).to_be_hidden()
    page.get_by_role("searchbox").fill("a gong")
    page.keyboard.press("Enter")
    page.get_by_label("API key", exact=True).fill(WRITER)
    page.get_by_role("button", name="Use it").click()
    page.get_by_role("link", name="Add").click()
    return page


def _row(page: Page, key: str) -> Locator:
    rows = page.get_by_role("list", name="What was added").get_by_role("listitem")
    return rows.filter(has_text=key)


def test_sounds_are_added_and_found(page: Page, bucket: Bucket) -> None:
    """Words first; each tells when it is found, and a sound that is there is replaced if wanted."""
    sidecar = SOUNDS / f"{ADDED}.json"
    page.get_by_label("Into the folder").fill("new/one")
    page.get_by_label("Or choose them").set_input_files([SOUNDS / ADDED, sidecar])
    sound = _row(page, "new/one/piano.wav").filter(has_not_text=".json")
    expect(_row(page, "new/one/piano.wav.json")).to_contain_text("Its words are there.")
    expect(sound).to_contain_text("will be listened to")
    assert (bucket.root / "new/one/piano.wav").read_bytes() == (SOUNDS / ADDED).read_bytes()
    bucket.sync("new/one/piano.wav")
    expect(sound).to_contain_text("It is found.")
    page.get_by_label("Or choose them").set_input_files(SOUNDS / ADDED)
    page.get_by_role("button", name="Replace new/one/piano.wav").click()
    expect(sound.first).to_contain_text("will be listened to")
    bucket.sync("new/one/piano.wav")
    expect(sound.first).to_contain_text("It is found.")


def test_what_is_not_taken_says_why(page: Page) -> None:
    """What is dropped here is added and not searched by; nobody is kept out."""
    page.locator(".zone").evaluate(DROP)
    expect(_row(page, "notes.txt")).to_contain_text("It names neither a sound nor a sidecar")
    problems = Axe().run(page)
    assert not problems.violations_count, problems.generate_report()
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_where_nothing_is_taken_nothing_is_offered(context: BrowserContext, url: str) -> None:
    """No link; who comes by an old address is told."""
    page = context.new_page()
    page.goto(f"{url}/?view=add")
    expect(page.get_by_role("region", name="Add sounds")).to_contain_text("takes no uploads")
    expect(page.get_by_role("link", name="Add")).to_be_hidden()
    expect(page.get_by_label("Or choose them")).to_be_hidden()
