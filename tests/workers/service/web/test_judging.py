"""How probable hits are, and saying which of them fit: on the page, by mouse and by keyboard."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from playwright.sync_api import BrowserContext, Locator, Page, expect
from search_page import Bucket, ask, hit, hits

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.feedback.book import open_book
from audiofuse.core.model.relevance import Curve, Relevance
from audiofuse.core.settings import Settings

HALF = Relevance(
    worded=Curve(slope=0, offset=0), wordless=Curve(slope=0, offset=-3), nothing_below=0.9
)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """Return where what is said is kept."""
    return {"registry": str(tmp_path / "registry")}


@pytest.fixture
def listening(
    context: BrowserContext, bucket: Bucket, settings: dict[str, str],
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> Iterator[Page]:  # fmt: skip
    """Return the page of a service that takes feedback, with four hits."""
    with serving(bucket.app(feedback=True, **settings)) as url:
        page = context.new_page()
        page.goto(url)
        ask(page, "a gong")
        expect(hits(page)).to_have_count(4)
        yield page
        page.close()


def _button(of: Locator, name: str) -> Locator:
    return of.get_by_role("group", name="fit?").get_by_role("button", name=name, exact=True)


def test_what_fits_is_said_by_click_and_by_key(
    listening: Page, settings: dict[str, str], bucket: Bucket
) -> None:
    """Each hit shows what was last said of it, also when the question is asked again.

    Saying the same again takes it back.
    """
    gong, owl = hit(listening, "Gong"), hit(listening, "Owl")
    _button(gong, "This is the one").click()
    expect(_button(gong, "This is the one")).to_have_attribute("aria-pressed", "true")
    owl.get_by_role("heading").click()
    listening.keyboard.press("y")
    expect(_button(owl, "Fits")).to_have_attribute("aria-pressed", "true")
    listening.keyboard.press("n")
    expect(_button(owl, "Does not fit")).to_have_attribute("aria-pressed", "true")
    expect(_button(owl, "Fits")).to_have_attribute("aria-pressed", "false")
    _button(gong, "This is the one").click()
    expect(_button(gong, "This is the one")).to_have_attribute("aria-pressed", "false")
    expect(gong).to_contain_text("Taken back.")
    kept = open_book(Settings(bucket=str(bucket.root), **settings)).read()
    assert [(said.text, said.key, said.opinion) for said in kept] == [
        ("a gong", "music/gong.ogg", "sought"),
        ("a gong", "animals/owl.wav", "fits"),
        ("a gong", "animals/owl.wav", "misses"),
        ("a gong", "music/gong.ogg", "withdrawn"),
    ]
    ask(listening, "an owl")
    expect(_button(hit(listening, "Owl"), "Fits")).to_have_attribute("aria-pressed", "false")
    ask(listening, "a gong")
    expect(_button(hit(listening, "Owl"), "Does not fit")).to_have_attribute("aria-pressed", "true")


def test_where_nothing_is_kept_nobody_is_asked(page: Page) -> None:
    """No hit asks what it cannot keep, and no key is named for it."""
    with page.expect_response("**/v1/feedback"):
        ask(page, "a gong")
    expect(hits(page)).to_have_count(4)
    expect(page.get_by_role("group", name="fit?")).to_have_count(0)
    expect(page.locator("#verdict-keys")).to_be_hidden()


def test_what_no_words_asked_for_is_not_judged(listening: Page) -> None:
    """A verdict is of a question's words: hits that are like an item have none."""
    expect(listening.get_by_role("group", name="fit?")).to_have_count(4)
    hit(listening, "Gong").get_by_role("button", name="More like Gong", exact=True).click()
    expect(hits(listening)).to_have_count(3)
    expect(listening.get_by_role("group", name="fit?")).to_have_count(0)


def test_saying_what_fits_keeps_nobody_out(listening: Page) -> None:
    """Axe finds no barrier in hits with verdicts, in light and in dark, and they fit a phone."""
    _button(hit(listening, "Gong"), "Fits").click()
    expect(hit(listening, "Gong")).to_contain_text("Thank you.")
    for scheme in ("light", "dark"):
        listening.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        problems = Axe().run(listening)
        assert not problems.violations_count, problems.generate_report()
    listening.set_viewport_size({"width": 320, "height": 640})
    assert listening.evaluate("document.documentElement.scrollWidth") <= 320


def test_hits_tell_how_probable_they_are(
    page: Page, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As per cent, with a filter; and a question that nothing answers is told so."""
    monkeypatch.setattr(tiny_encoder, "config", tiny_encoder.with_relevance(HALF).config)
    ask(page, "a gong")
    expect(page.locator("#message")).to_have_text("Nothing here sounds like that; the nearest are:")
    expect(hit(page, "Gong").locator(".relevance")).to_have_text("50 %")
    expect(hit(page, "cowbell.flac").locator(".relevance")).to_have_text("5 %")
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Probably meant").select_option("50 % at least")
    expect(hits(page)).to_have_count(3)
    expect(page.get_by_role("list", name="Active filters")).to_contain_text(
        "at least 50 % probable"
    )


def test_where_it_is_not_known_no_figure_is_shown(page: Page) -> None:
    """The filter is refused then, with the reason."""
    ask(page, "a gong")
    expect(hits(page)).to_have_count(4)
    expect(page.locator(".relevance:visible")).to_have_count(0)
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Probably meant").select_option("50 % at least")
    expect(page.locator("#message")).to_contain_text("no calibration")
