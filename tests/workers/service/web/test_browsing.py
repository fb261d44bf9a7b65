"""Looking through what there is, without a question: orders, what sounds have in common."""

import re

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from search_page import Bucket, ask, hit, hits, titles


def _keys(page: Page) -> list[str]:
    hits = "[...document.querySelectorAll('#results .hit')].map(({ hit }) => hit.key)"
    return list(page.evaluate(hits))


def test_without_a_question_everything_is_there(page: Page, bucket: Bucket) -> None:
    """The newest sounds come first, a new one before the others, and each can be heard."""
    expect(hits(page)).to_have_count(4)
    expect(hits(page).first.get_by_role("button", name="Play")).to_be_enabled()
    expect(hits(page).first.locator(".why")).to_be_hidden()
    bucket.add("music/gong.ogg", "new.ogg")
    page.reload()
    expect(hits(page)).to_have_count(5)
    assert _keys(page)[0] == "new.ogg"
    bucket.remove("new.ogg")


def test_the_order_is_chosen_and_in_the_address(page: Page) -> None:
    """By length, by chance, and going back leads to the order before."""
    expect(hits(page)).to_have_count(4)
    page.get_by_label("Order").select_option("longest first")
    expect(page).to_have_url(re.compile("sort=longest"))
    expect(hits(page)).to_have_count(4)
    lengths = page.evaluate(
        "[...document.querySelectorAll('.hit')].map(({ hit }) => hit.payload.duration_s)"
    )
    assert lengths == sorted(lengths, reverse=True)
    page.get_by_role("button", name="Surprise me").click()
    expect(page.get_by_label("Order")).to_have_value("random")
    expect(hits(page)).to_have_count(4)
    page.go_back()
    expect(page.get_by_label("Order")).to_have_value("longest")


def test_what_sounds_have_in_common_narrows_them(page: Page) -> None:
    """A value tells how many sounds have it, and choosing it shows these and what they share."""
    facets = page.locator("#facets")
    expect(facets.get_by_role("button", name="Folders: music/, 3")).to_be_visible()
    facets.get_by_role("button", name="Folders: music/, 3").click()
    expect(hits(page)).to_have_count(3)
    expect(page.get_by_role("button", name="Remove the filter: in music/")).to_be_visible()
    facets.get_by_role("button", name="Words: without words, 1").click()
    expect(page.locator("#results:not([aria-busy]) h2")).to_have_text(["cowbell.flac"])
    page.get_by_role("button", name="Clear all").click()
    expect(hits(page)).to_have_count(4)
    facets.get_by_role("button", name="Length:").first.click()
    shown = page.evaluate("new URLSearchParams(location.search).has('max_duration')")
    assert shown
    expect(hits(page).first).to_be_visible()


def test_a_question_ends_browsing_and_keeps_the_filters(page: Page) -> None:
    """What was narrowed stays so; without the question one looks through it again."""
    page.locator("#facets").get_by_role("button", name="Folders: music/, 3").click()
    expect(hits(page)).to_have_count(3)
    ask(page, "a gong")
    expect(hits(page)).to_have_count(3)
    expect(page.locator("#facets")).to_be_hidden()
    expect(hit(page, "Gong").locator(".why")).to_be_visible()
    ask(page, "")
    expect(page.locator("#facets")).to_be_visible()
    expect(hits(page)).to_have_count(3)
    assert "Owl" not in titles(page)


def test_nobody_is_kept_out_of_browsing(page: Page) -> None:
    """Axe finds no barrier in what there is without a question, and it fits a phone of 320 px."""
    expect(hits(page)).to_have_count(4)
    expect(page.locator("#facets")).to_be_visible()
    problems = Axe().run(page)
    assert not problems.violations_count, problems.generate_report()
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
