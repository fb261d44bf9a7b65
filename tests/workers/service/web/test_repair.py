"""Repair on the page: what was rejected is tried again; what is there twice; what has no words."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from zipfile import ZipFile

import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi import FastAPI
from playwright.sync_api import BrowserContext, Locator, Page, expect
from pydantic import SecretStr
from redis import Redis
from search_page import Bucket, hits

from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.search import labels
from audiofuse.core.settings import Settings
from audiofuse.workers.queue.broker import open_lanes
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.telemetry.names import Lane


@pytest.fixture
def repair(
    context: BrowserContext, bucket: Bucket, redis: Redis, valkey_url: str,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> Iterator[Page]:  # fmt: skip
    """Return the page's view of repair, with three objects rejected."""
    letters = DeadLetters(redis, "audiofuse", "tiny-000000")
    letters.add("field/still.wav", Rejected(Reason.SILENT, "nothing is heard"))
    for key in ("music/gong.ogg", "field/cut.wav"):
        letters.add(key, Rejected(Reason.DAMAGED, "it ends too early"))
    with serving(bucket.app(broker_url=SecretStr(valkey_url))) as url:
        page = context.new_page()
        page.goto(url)
        page.get_by_role("link", name="Repair").click()
        expect(_rejected(page)).to_have_count(3)
        yield page
        page.close()


def _rejected(page: Page) -> Locator:
    return page.get_by_role("list", name="Rejected, newest first").get_by_role("listitem")


def _waiting(valkey_url: str) -> int:
    return open_lanes(Settings(broker_url=SecretStr(valkey_url))).waiting(Lane.LIVE)


def test_what_was_rejected_is_tried_again(repair: Page, valkey_url: str) -> None:
    """Each with what it means and why, one by one or all of a reason."""
    before = _waiting(valkey_url)
    cut = _rejected(repair).filter(has_text="field/cut.wav")
    expect(cut).to_contain_text("It is cut off or corrupt: upload it again. It ends too early")
    repair.get_by_role("button", name="Try field/cut.wav again").click()
    expect(repair.locator("#repair")).to_contain_text("1 tried again")
    assert _waiting(valkey_url) == before + 1
    repair.get_by_role("button", name="damaged 2").click()
    expect(_rejected(repair)).to_have_count(2)
    repair.get_by_role("button", name="Try all of these again").click()
    expect(repair.locator("#repair")).to_contain_text("2 tried again")
    assert _waiting(valkey_url) == before + 3
    gong = _rejected(repair).filter(has_text="music/gong.ogg")
    expect(gong.get_by_role("link", name="Open")).to_be_visible()


def test_it_is_told_why_a_sound_is_found_or_not(repair: Page) -> None:
    """Of a sound that is, of one that was rejected or is in no bucket, and of what is none."""
    why = repair.locator("#why")
    for key, told in {
        "music/piano.wav": "indexed",
        "nowhere.wav": "absent",
        "music/gong.json": "no sound",
    }.items():
        repair.get_by_role("textbox", name="Its key").fill(key)
        repair.get_by_role("button", name="Explain").click()
        expect(why.locator("b")).to_have_text(told)


def test_what_is_there_twice_is_selected(repair: Page, bucket: Bucket) -> None:
    """All but the first of a group, by content and by ear, to be taken along or deleted."""
    bucket.add("music/gong.ogg", "copies/gong.ogg")
    repair.reload()
    same = repair.get_by_role("list", name="Groups of the same content")
    expect(same).to_contain_text("copies/gong.ogg")
    same.get_by_role("button", name="Select all but").click()
    expect(repair.get_by_role("region", name="Selected sounds")).to_contain_text("1 sound")
    repair.get_by_role("button", name="Look for them").click()
    expect(repair.locator("#looked")).to_contain_text("and that is all")
    expect(repair.get_by_role("list", name="Groups that sound alike")).to_contain_text("gong.ogg")
    bucket.remove("copies/gong.ogg")


def test_what_has_no_words_is_shown(repair: Page) -> None:
    """A number, which leads to them."""
    repair.get_by_role("button", name="1 sound has no words").click()
    expect(hits(repair)).to_have_count(1)
    expect(repair.locator("#results h2")).to_have_text(["cowbell.flac"])
    repair.go_back()
    expect(_rejected(repair)).to_have_count(3)


def test_labels_are_suggested_and_taken_along(
    repair: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are left on, as sidecars for what has no words."""
    monkeypatch.setattr(labels, "NEAR", -1.0)  # a tiny encoder has nothing near
    repair.get_by_role("button", name="Suggest labels by ear").click()
    named = repair.get_by_role("list", name="Sounds without words")
    expect(named.get_by_role("listitem")).to_have_count(1)
    expect(named).to_contain_text("music/cowbell.flac")
    chips = named.get_by_role("button", pressed=True)
    expect(chips).to_have_count(5)
    kept = chips.all_inner_texts()[1:]
    chips.first.click()
    expect(chips).to_have_count(4)
    with repair.expect_download() as download:
        repair.get_by_role("button", name="Download 1 sidecar").click()
    with ZipFile(download.value.path()) as file:
        assert file.namelist() == ["music/cowbell.flac.json"]
        assert json.loads(file.read("music/cowbell.flac.json")) == {"labels": kept}


def test_nobody_is_kept_out_of_repair(repair: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Axe finds no barrier, with labels suggested, too, and it fits a phone of 320 px."""
    monkeypatch.setattr(labels, "NEAR", -1.0)
    repair.get_by_role("button", name="Suggest labels by ear").click()
    expect(repair.get_by_role("button", name="Download 1 sidecar")).to_be_visible()
    problems = Axe().run(repair)
    assert not problems.violations_count, problems.generate_report()
    repair.set_viewport_size({"width": 320, "height": 640})
    assert repair.evaluate("document.documentElement.scrollWidth") <= 320
