"""The search page in a real browser, on a real service: asking, hearing, filtering, failing."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from local_encoder import LocalEncoder
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright
from pydantic import SecretStr

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.index.index import Index, connect_embedded
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.decoding.pool import Decoders
from audiofuse.workers.indexing.sync import Syncer
from audiofuse.workers.service.app import create_app
from audiofuse.workers.service.page import FOLDER

SOUNDS = Path(__file__).parents[4] / "examples" / "sounds"
KEYS = ("music/gong.ogg", "music/cowbell.flac", "music/piano.wav", "animals/owl.wav")
SIDECARS = ("music/gong.json", "music/piano.wav.json", "animals/owl.json")
VERSION = "tiny-000000"
PATIENCE_MS = 20_000
API_KEY, WORDS_ONLY = "of-the-test-0123456789", "words-only-0123456789"
DROP = """([bytes, name]) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([new Uint8Array(bytes)], name));
    for (const type of ["dragenter", "dragover", "drop"]) {
        const event = new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
    }
}"""
Serving = Callable[[FastAPI], AbstractContextManager[str]]


class Bucket:
    """A bucket folder and the service that searches it."""

    def __init__(self, root: Path, encoder: Encoder) -> None:
        """Index every sound of the bucket."""
        self.root = root
        self.index = Index(connect_embedded(), "audiofuse")
        self._generation = self.index.create(VERSION, encoder)
        limits = Limits(60, 10**7)
        self._syncer = Syncer(
            BucketSide(FolderStore(root), limits),
            IndexSide(self.index, self._generation),
            LocalEncoder(encoder),
        )
        self.decoders = Decoders(1, 30)
        self._searcher = Searcher(
            self.index, LoadedEncoders(_nowhere, {VERSION: encoder}), open_sound=self.decoders.open
        )

    def add(self, key: str, name: str = "") -> None:
        """Put an example into the bucket, under another ``name`` if one is given, and index it."""
        path = self.root / (name or key)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOUNDS / key, path)
        self._syncer.sync(name or key)

    def app(self, api_keys: SecretStr | None = None) -> FastAPI:
        """Return the service."""
        return create_app(self._searcher, Settings(bucket=str(self.root), api_keys=api_keys))


def _nowhere(version: str) -> Encoder:
    raise AssertionError(f"nobody asked for {version}")


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


def _ask(page: Page, text: str) -> None:
    page.get_by_role("searchbox").fill(text)
    page.keyboard.press("Enter")


def _hits(page: Page) -> Locator:
    return page.locator(".hit")


def _titles(page: Page) -> list[str]:
    return page.locator(".hit h2").all_inner_texts()


def _hit(page: Page, title: str) -> Locator:
    return _hits(page).filter(has=page.get_by_role("heading", name=title, exact=True))


def test_a_sentence_is_answered(page: Page) -> None:
    """Every hit tells what it is, and what sound and words gave; the words asked are marked."""
    expect(page.locator("#count")).to_have_text("4 sounds")
    _ask(page, "gongs")
    expect(_hits(page)).to_have_count(4)
    gong = _hit(page, "Gong")
    expect(gong.locator("mark").first).to_have_text(re.compile("gong", re.IGNORECASE))
    expect(gong.locator(".parts")).to_have_text(re.compile(r"sound .?\d\.\d\d · words .?\d\.\d\d"))
    expect(_hit(page, "cowbell.flac").locator(".parts")).to_contain_text("no words")
    assert page.title() == "gongs · audiofuse"
    shown = _titles(page)
    page.reload()
    expect(_hits(page)).to_have_count(4)
    assert _titles(page) == shown


def test_a_hit_is_played_and_drawn(page: Page, eventually: Callable[..., object]) -> None:
    """Its waveform appears; playing moves along it, and a click on it goes there."""
    _ask(page, "a gong")
    gong = _hit(page, "Gong")
    gong.scroll_into_view_if_needed()
    drawn = "[...document.querySelectorAll('.hit')].every((hit) => hit.peaks)"
    eventually(lambda: page.evaluate(drawn))
    gong.get_by_role("button", name="Play Gong").click()
    expect(gong.get_by_role("button", name="Pause Gong")).to_be_visible()
    position = gong.get_by_role("slider", name="Position in Gong")
    eventually(lambda: float(position.input_value()) > 0)
    box = position.bounding_box()
    assert box is not None
    position.click(position={"x": box["width"] * 0.7, "y": box["height"] / 2})
    eventually(lambda: float(position.input_value()) > 600)
    gong.get_by_role("button", name="Pause Gong").click()
    expect(gong.get_by_role("button", name="Play Gong")).to_be_visible()


def test_an_expired_link_is_renewed(page: Page) -> None:
    """A hit is played even if its link has expired since it was found."""
    _ask(page, "a gong")
    expect(_hits(page)).to_have_count(4)
    page.evaluate(
        "document.querySelectorAll('.hit').forEach(({ hit }) => { hit.audio_url += '0'; })"
    )
    _hit(page, "Gong").get_by_role("button", name="Play Gong").click()
    expect(_hit(page, "Gong")).to_have_class("hit playing")


def test_the_keyboard_suffices(page: Page) -> None:
    """Asking, choosing, playing and asking for more of the same need no pointer."""
    page.locator("body").press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("piano")
    page.keyboard.press("Enter")
    expect(_hits(page)).to_have_count(4)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    second = _hits(page).nth(1)
    expect(second).to_be_focused()
    page.keyboard.press("Space")
    expect(second).to_have_class("hit playing")
    page.keyboard.press("Escape")
    expect(second).to_have_class("hit")
    second.focus()
    page.keyboard.press("m")
    expect(_hits(page)).to_have_count(3)


def test_filters_are_chips(page: Page) -> None:
    """A tag narrows the answer to what has it, its chip widens it again; so does going back."""
    _ask(page, "a sound")
    expect(_hits(page)).to_have_count(4)
    _hit(page, "Gong").get_by_role("button", name="Only with the keyword gong").click()
    expect(_hits(page)).to_have_count(1)
    page.get_by_role("button", name="Remove the filter: keyword gong").click()
    expect(_hits(page)).to_have_count(4)
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Metadata").select_option("only without")
    expect(page.locator(".hit h2")).to_have_text(["cowbell.flac"])
    page.go_back()
    expect(_hits(page)).to_have_count(4)


def test_more_like_this_and_words_besides(page: Page) -> None:
    """Its kind without itself; words can be added, and the sound be taken away again."""
    _ask(page, "a gong")
    _hit(page, "Gong").get_by_role("button", name="More like Gong").click()
    expect(page.locator("#by")).to_contain_text("Like Gong")
    expect(_hits(page)).to_have_count(3)
    assert "Gong" not in _titles(page)
    with page.expect_response(lambda answer: answer.request.method == "POST") as answered:
        _ask(page, "with birds")
    assert answered.value.ok
    page.get_by_role("button", name="Search without this sound").click()
    expect(_hits(page)).to_have_count(4)
    expect(page.locator("#by")).to_be_hidden()


def test_a_dropped_sound_finds_itself(page: Page) -> None:
    """A sound dropped anywhere is searched by; what is none is refused, and says why."""
    page.evaluate(DROP, [list((SOUNDS / "animals/owl.wav").read_bytes()), "my owl.wav"])
    expect(page.locator("#by")).to_contain_text("Sounds like my owl.wav")
    expect(page.locator(".hit h2").first).to_have_text("Owl")
    page.evaluate(DROP, [list(b"no sound at all"), "letter.txt"])
    expect(page.get_by_role("status")).to_contain_text("The sound cannot be searched by")
    expect(_hits(page)).to_have_count(0)


def test_nothing_found_says_what_to_do(page: Page) -> None:
    """When no sound passes the filters, they can be cleared where that is told."""
    page.goto(page.url + "?q=a+gong&keyword=nosuchthing")
    expect(page.get_by_role("status")).to_contain_text("No sound passes these filters")
    page.get_by_role("button", name="Clear the filters").click()
    expect(_hits(page)).to_have_count(4)


def test_an_empty_index_says_so(
    context: BrowserContext, tmp_path: Path, tiny_encoder: Encoder, serving: Serving
) -> None:
    """Before the first sound the page tells how one appears."""
    empty = Bucket(tmp_path, tiny_encoder)
    with ExitStack() as stack:
        stack.callback(empty.decoders.close)
        page = context.new_page()
        page.goto(stack.enter_context(serving(empty.app())))
        expect(page.locator("#count")).to_have_text("0 sounds")
        _ask(page, "a gong")
        expect(page.get_by_role("status")).to_contain_text("Nothing is indexed yet")
        page.close()


def test_what_was_asked_of_a_dead_service_is_answered_later(
    page: Page, context: BrowserContext, bucket: Bucket
) -> None:
    """It says that nobody answers, and once somebody does, shows the hits and the new count."""
    expect(page.locator("#count")).to_have_text("4 sounds")
    context.set_offline(True)
    _ask(page, "a gong")
    expect(page.get_by_role("status")).to_contain_text("The service does not answer")
    bucket.add("music/gong.ogg", "another.ogg")
    context.set_offline(False)
    expect(_hits(page)).to_have_count(5)
    expect(page.locator("#count")).to_have_text("5 sounds")
    (bucket.root / "another.ogg").unlink()


def test_a_key_is_asked_for(context: BrowserContext, bucket: Bucket, serving: Serving) -> None:
    """Without a key nothing is shown, a wrong one is refused, the right one is used from then on.

    One that does not let its holder hear gets no players.
    """
    keys = SecretStr(f"me:{API_KEY}, reader:{WORDS_ONLY}:search")
    with serving(bucket.app(keys)) as url:
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#count")).to_have_text("needs a key")
        _ask(page, "a gong")
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("status")).to_contain_text("A key is needed")
        page.get_by_role("button", name="Try again").click()
        for key in ("wrong", API_KEY):
            page.get_by_role("textbox", name="API key").fill(key)
            page.get_by_role("button", name="Use it").click()
            if key == "wrong":
                expect(page.get_by_role("alert")).to_have_text("That key was not accepted.")
        expect(_hits(page).first.locator(".play")).to_be_enabled()
        page.evaluate("(key) => sessionStorage.setItem('audiofuse-key', key)", WORDS_ONLY)
        page.reload()
        expect(_hits(page).first.locator(".play")).to_be_disabled()
        expect(_hits(page).first.get_by_role("link", name="Download")).to_be_hidden()
        page.close()


def test_a_phone_needs_no_sideways_scrolling(page: Page) -> None:
    """On a narrow screen everything is within its width, filters and a long question included."""
    page.set_viewport_size({"width": 340, "height": 700})
    _ask(page, "a gong that somebody strikes very gently far away in the mountains")
    expect(_hits(page).first).to_be_visible()
    _hits(page).first.get_by_role("button", name="More like").click()
    page.get_by_role("button", name="Filters").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 340


def test_the_page_has_nothing_inline() -> None:
    """The strict policy of the service lets the page have no inline script and no inline style."""
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    assert not re.findall(r"https?://", html)
