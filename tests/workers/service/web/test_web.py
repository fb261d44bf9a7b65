"""The search page in a real browser, on a real service: asking, hearing, filtering, failing."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from fastapi import FastAPI
from playwright.sync_api import BrowserContext, Page, expect
from pydantic import SecretStr
from search_page import SOUNDS, Bucket, ask, hit, hits, titles

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.workers.service.page import FOLDER

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


def test_a_sentence_is_answered(page: Page) -> None:
    """Every hit tells what it is, and what sound and words gave; the words asked are marked."""
    expect(page.locator("#count")).to_have_text("4 sounds")
    ask(page, "gongs")
    expect(hits(page)).to_have_count(4)
    gong = hit(page, "Gong")
    expect(gong.locator("mark").first).to_have_text(re.compile("gong", re.IGNORECASE))
    expect(gong.locator(".parts")).to_have_text(re.compile(r"sound .?\d\.\d\d · words .?\d\.\d\d"))
    expect(hit(page, "cowbell.flac").locator(".parts")).to_contain_text("no words")
    assert page.title() == "gongs · audiofuse"
    shown = titles(page)
    page.reload()
    expect(hits(page)).to_have_count(4)
    assert titles(page) == shown


def test_a_hit_is_played_and_drawn(page: Page, eventually: Callable[..., object]) -> None:
    """Its waveform appears; playing moves along it, and a click on it goes there."""
    ask(page, "a gong")
    gong = hit(page, "Gong")
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
    ask(page, "a gong")
    expect(hits(page)).to_have_count(4)
    page.evaluate(
        "document.querySelectorAll('.hit').forEach(({ hit }) => { hit.audio_url += '0'; })"
    )
    hit(page, "Gong").get_by_role("button", name="Play Gong").click()
    expect(hit(page, "Gong")).to_have_class("hit playing")


def test_the_keyboard_suffices(page: Page) -> None:
    """Asking, choosing, playing and asking for more of the same need no pointer."""
    page.locator("body").press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("piano")
    page.keyboard.press("Enter")
    expect(hits(page)).to_have_count(4)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    second = hits(page).nth(1)
    expect(second).to_be_focused()
    page.keyboard.press("Space")
    expect(second).to_have_class("hit playing")
    page.keyboard.press("Escape")
    expect(second).to_have_class("hit")
    second.focus()
    page.keyboard.press("m")
    expect(hits(page)).to_have_count(3)


def test_filters_are_chips(page: Page) -> None:
    """A tag narrows the answer to what has it, its chip widens it again; so does going back."""
    ask(page, "a sound")
    expect(hits(page)).to_have_count(4)
    hit(page, "Gong").get_by_role("button", name="Only with the keyword gong").click()
    expect(hits(page)).to_have_count(1)
    page.get_by_role("button", name="Remove the filter: keyword gong").click()
    expect(hits(page)).to_have_count(4)
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Metadata").select_option("only without")
    expect(page.locator(".hit h2")).to_have_text(["cowbell.flac"])
    page.go_back()
    expect(hits(page)).to_have_count(4)


def test_more_like_this_and_words_besides(page: Page) -> None:
    """Its kind without itself; words can be added, and the sound be taken away again."""
    ask(page, "a gong")
    hit(page, "Gong").get_by_role("button", name="More like Gong").click()
    expect(page.locator("#by")).to_contain_text("Like Gong")
    expect(hits(page)).to_have_count(3)
    assert "Gong" not in titles(page)
    with page.expect_response(lambda answer: answer.request.method == "POST") as answered:
        ask(page, "with birds")
    assert answered.value.ok
    page.get_by_role("button", name="Search without this sound").click()
    expect(hits(page)).to_have_count(4)
    expect(page.locator("#by")).to_be_hidden()


def test_a_dropped_sound_finds_itself(page: Page) -> None:
    """A sound dropped anywhere is searched by; what is none is refused, and says why."""
    page.evaluate(DROP, [list((SOUNDS / "animals/owl.wav").read_bytes()), "my owl.wav"])
    expect(page.locator("#by")).to_contain_text("Sounds like my owl.wav")
    expect(page.locator(".hit h2").first).to_have_text("Owl")
    page.evaluate(DROP, [list(b"no sound at all"), "letter.txt"])
    expect(page.locator("#message")).to_contain_text("The sound cannot be searched by")
    expect(hits(page)).to_have_count(0)


def test_nothing_found_says_what_to_do(page: Page) -> None:
    """When no sound passes the filters, they can be cleared where that is told."""
    page.goto(page.url + "?q=a+gong&keyword=nosuchthing")
    expect(page.locator("#message")).to_contain_text("No sound passes these filters")
    page.get_by_role("button", name="Clear the filters").click()
    expect(hits(page)).to_have_count(4)


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
        ask(page, "a gong")
        expect(page.locator("#message")).to_contain_text("Nothing is indexed yet")
        page.close()


def test_what_was_asked_of_a_dead_service_is_answered_later(
    page: Page, context: BrowserContext, bucket: Bucket
) -> None:
    """It says that nobody answers, and once somebody does, shows the hits and the new count."""
    expect(page.locator("#count")).to_have_text("4 sounds")
    context.set_offline(True)
    ask(page, "a gong")
    expect(page.locator("#message")).to_contain_text("The service does not answer")
    bucket.add("music/gong.ogg", "another.ogg")
    context.set_offline(False)
    expect(hits(page)).to_have_count(5)
    expect(page.locator("#count")).to_have_text("5 sounds")
    bucket.remove("another.ogg")


def test_a_key_is_asked_for(context: BrowserContext, bucket: Bucket, serving: Serving) -> None:
    """Without a key nothing is shown, a wrong one is refused, the right one is used from then on.

    One that does not let its holder hear gets no players.
    """
    keys = SecretStr(f"me:{API_KEY}, reader:{WORDS_ONLY}:search")
    with serving(bucket.app(keys)) as url:
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#count")).to_have_text("needs a key")
        ask(page, "a gong")
        page.get_by_role("button", name="Cancel").click()
        expect(page.locator("#message")).to_contain_text("A key is needed")
        page.get_by_role("button", name="Try again").click()
        for key in ("wrong", API_KEY):
            page.get_by_role("textbox", name="API key").fill(key)
            page.get_by_role("button", name="Use it").click()
            if key == "wrong":
                expect(page.get_by_role("alert")).to_have_text("That key was not accepted.")
        expect(hits(page).first.locator(".play")).to_be_enabled()
        page.evaluate("(key) => sessionStorage.setItem('audiofuse-key', key)", WORDS_ONLY)
        page.reload()
        expect(hits(page).first.locator(".play")).to_be_disabled()
        expect(hits(page).first.get_by_role("link", name="Download")).to_be_hidden()
        page.close()


def test_a_phone_needs_no_sideways_scrolling(page: Page) -> None:
    """On a narrow screen everything is within its width, filters and a long question included."""
    page.set_viewport_size({"width": 340, "height": 700})
    ask(page, "a gong that somebody strikes very gently far away in the mountains")
    expect(hits(page).first).to_be_visible()
    hits(page).first.get_by_role("button", name="More like").click()
    page.get_by_role("button", name="Filters").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 340


def test_the_page_has_nothing_inline() -> None:
    """The strict policy of the service lets the page have no inline script and no inline style."""
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", html)
    assert not re.findall(r"https?://", html)
