"""Taking along what was found: selecting, files in many formats, dragging, by keyboard, too."""

import csv
import io
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from zipfile import ZipFile

import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from playwright.sync_api import BrowserContext, Locator, Page, expect
from pydantic import SecretStr
from search_page import SOUNDS, Bucket, ask, hit, hits

from audiofuse.core import query
from audiofuse.core.items import is_audio

WORDS_ONLY = "words-only-0123456789"
DRAG = """(link) => {
    const dataTransfer = new DataTransfer();
    link.dispatchEvent(new DragEvent("dragstart", { dataTransfer, bubbles: true }));
    return dataTransfer.getData("DownloadURL");
}"""


@pytest.fixture
def found(page: Page) -> Page:
    """Return the page with four hits."""
    ask(page, "a sound")
    expect(hits(page)).to_have_count(4)
    return page


def _box(of: Locator) -> Locator:
    return of.get_by_role("checkbox")


def _bar(page: Page) -> Locator:
    return page.get_by_role("region", name="Selected sounds")


def _saved(page: Page, button: str) -> Path:
    with page.expect_download() as download:
        _bar(page).get_by_role("button", name=button).click()
    return Path(download.value.path())


def test_hits_are_selected_by_click_by_shift_and_all(found: Page) -> None:
    """Shift takes all between; what is selected is counted, and stays whatever is asked next."""
    expect(_bar(found)).to_be_hidden()
    _box(hits(found).nth(0)).click()
    expect(_bar(found)).to_contain_text("1 sound selected")
    _box(hits(found).nth(2)).click(modifiers=["Shift"])
    expect(_bar(found)).to_contain_text("3 sounds selected")
    found.get_by_role("button", name="Select all").click()
    expect(_bar(found)).to_contain_text("4 sounds selected")
    found.get_by_role("button", name="Select none").click()
    expect(_bar(found)).to_be_hidden()
    _box(hit(found, "Gong")).click()
    ask(found, "another question")
    expect(_box(hit(found, "Gong"))).to_be_checked()
    expect(_bar(found)).to_contain_text("1 sound selected")


def test_sounds_are_downloaded_with_their_sidecars(found: Page, bucket: Bucket) -> None:
    """The ZIP file has what the bucket has, under the same names."""
    for title in ("Gong", "cowbell.flac"):
        _box(hit(found, title)).click()
    with ZipFile(_saved(found, "Download")) as file:
        inside = {name: file.read(name) for name in file.namelist()}
    expected = ("music/gong.ogg", "music/gong.json", "music/cowbell.flac")
    assert inside == {key: (bucket.root / key).read_bytes() for key in expected}
    expect(_bar(found)).to_contain_text("2 sounds in sounds.zip")


def test_what_is_known_of_hits_is_saved(found: Page, bucket: Bucket) -> None:
    """A table and JSON with their scores, and a playlist of where they lie."""
    found.get_by_role("button", name="Select all").click()
    rows = list(csv.DictReader(io.StringIO(_saved(found, "CSV").read_text())))
    told = json.loads(_saved(found, "JSON").read_text())
    assert [row["key"] for row in rows] == [each["key"] for each in told]
    scores = [float(row["sound"]) + float(row["words"]) for row in rows]
    assert scores == pytest.approx([each["score"] for each in told])
    gong = next(row for row in rows if row["title"] == "Gong")
    assert gong["location"] == str(bucket.root / "music" / "gong.ogg")
    first, *lines = _saved(found, "Playlist").read_text().splitlines()
    assert first == "#EXTM3U"
    assert lines[1::2] == [row["location"] for row in rows]
    assert all(Path(path).is_file() for path in lines[1::2])


def test_a_spreadsheet_runs_no_words_of_a_sidecar(found: Page) -> None:
    """A title that begins like a formula is text in the table."""
    titles = (
        "document.querySelectorAll('.hit').forEach(({ hit }) => { hit.payload.title = '=1+1'; })"
    )
    found.evaluate(titles)
    found.get_by_role("button", name="Select all").click()
    rows = csv.DictReader(io.StringIO(_saved(found, "CSV").read_text()))
    assert {row["title"] for row in rows} == {"'=1+1"}


def test_paths_are_copied(found: Page, context: BrowserContext, bucket: Bucket) -> None:
    """One a line, as a shell or a DAW takes them."""
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    _box(hit(found, "Gong")).click()
    _bar(found).get_by_role("button", name="Copy paths").click()
    expect(_bar(found)).to_contain_text("The path is copied")
    copied = found.evaluate("navigator.clipboard.readText()")
    assert copied == str(bucket.root / "music" / "gong.ogg")


def test_a_hit_is_dragged_out_of_the_page(found: Page) -> None:
    """What Chromium writes where it is dropped: a name, and a link that gives the sound."""
    dragged = hit(found, "Gong").get_by_role("link", name="Download").evaluate(DRAG)
    type_, name, url = dragged.split(":", 2)
    assert (type_, name) == ("application/octet-stream", "gong.ogg")
    assert found.request.get(url).body()[:4] == b"OggS"


def test_taking_along_needs_no_pointer(found: Page) -> None:
    """Keys select one, a range and all, and lead to the bar."""
    found.keyboard.press("ArrowDown")
    found.keyboard.press("x")
    expect(_bar(found)).to_contain_text("1 sound selected")
    found.keyboard.press("ArrowDown")
    found.keyboard.press("ArrowDown")
    found.keyboard.press("Shift+X")
    expect(_bar(found)).to_contain_text("3 sounds selected")
    found.keyboard.press("a")
    expect(_bar(found)).to_contain_text("4 sounds selected")
    found.keyboard.press("t")
    expect(_bar(found).get_by_role("button", name="Download")).to_be_focused()
    with found.expect_download() as download:
        found.keyboard.press("Enter")
    assert download.value.suggested_filename == "sounds.zip"


def test_the_address_holds_the_selection(found: Page) -> None:
    """A page that is loaded again, or by somebody else, has the same sounds selected."""
    for title in ("Gong", "Owl"):
        _box(hit(found, title)).click()
    found.goto(found.url.replace("q=a+sound", "q=something+else"))
    expect(_bar(found)).to_contain_text("2 sounds selected")
    expect(_box(hit(found, "Owl"))).to_be_checked()
    ask(found, "a gong")
    expect(_bar(found)).to_contain_text("2 sounds selected")
    found.go_back()
    expect(found.get_by_role("searchbox")).to_have_value("something else")
    expect(_bar(found)).to_contain_text("2 sounds selected")


def test_who_may_not_hear_takes_words_only(
    context: BrowserContext, bucket: Bucket,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> None:  # fmt: skip
    """Without the scope for sounds there is nothing to download, and their keys are copied."""
    with serving(bucket.app(SecretStr(f"reader:{WORDS_ONLY}:search"))) as url:
        page = context.new_page()
        page.goto(url)
        page.evaluate("(key) => sessionStorage.setItem('audiofuse-key', key)", WORDS_ONLY)
        ask(page, "a gong")
        page.get_by_role("button", name="Select all").click()
        expect(_bar(page).get_by_role("button", name="Download")).to_be_hidden()
        assert len(_saved(page, "CSV").read_text().splitlines()) == 5
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out(found: Page, scheme: str) -> None:
    """Axe finds no barrier in a page with hits and a selection, in light and in dark."""
    found.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    found.get_by_role("button", name="Filters").click()
    _box(hits(found).first).click()
    problems = Axe().run(found)
    assert not problems.violations_count, problems.generate_report()


def test_the_bar_fits_a_phone(found: Page) -> None:
    """At 320 px nothing is beyond the edge."""
    found.set_viewport_size({"width": 320, "height": 640})
    found.get_by_role("button", name="Select all").click()
    expect(_bar(found)).to_be_visible()
    assert found.evaluate("document.documentElement.scrollWidth") <= 320


def test_pages_come_without_end(
    page: Page, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever scrolls sees the next hits before the last; where no more are ranked it is said."""
    files = (path.relative_to(SOUNDS).as_posix() for path in SOUNDS.rglob("*.*"))
    many = {f"many/{key}": key for key in files if is_audio(key)}  # hardly two score alike
    for name, key in many.items():
        bucket.add(key, name)
    ask(page, "a gong")
    expect(hits(page).nth(19)).to_be_attached()
    while hits(page).count() < len(many) + 4:
        before = hits(page).count()
        hits(page).last.scroll_into_view_if_needed()
        expect(hits(page).nth(before)).to_be_attached()
    keys = page.evaluate("[...document.querySelectorAll('.hit')].map(({ hit }) => hit.key)")
    assert len(keys) == len({*keys}) == len(many) + 4
    expect(page.get_by_role("button", name="More", exact=True)).to_be_hidden()
    monkeypatch.setattr(query, "CANDIDATES", 20)  # as many as the page asks for at first
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Hide copies").check()
    expect(hits(page)).to_have_count(20)
    hits(page).last.scroll_into_view_if_needed()
    expect(page.get_by_text("Only the 20 nearest are ranked so")).to_be_visible()
    expect(page.locator("#message")).to_be_empty()
    expect(page.get_by_role("button", name="More", exact=True)).to_be_hidden()
    for key in many:
        bucket.remove(key)
