"""Where in a long recording it is heard: a curve, moments that are played, jumped to, asked by."""

import re
import wave
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from made_sounds import noise, tone, write_wav
from playwright.sync_api import Locator, Page, expect
from search_page import Bucket, ask, hit, hits

LONG_S = 60


@pytest.fixture(scope="module")
def recording(bucket: Bucket) -> Iterator[Bucket]:
    """Put a recording of a minute into the bucket, of which each window has a moment."""
    parts = [part for hertz in (200, 900, 4000) for part in (tone(10, hertz), noise(10))]
    write_wav(bucket.root / "long.wav", np.concatenate(parts))
    bucket.sync("long.wav")
    yield bucket
    bucket.remove("long.wav")


@pytest.fixture
def long(page: Page, recording: Bucket) -> Locator:
    """Return the hit of the recording."""
    del recording
    ask(page, "a gong")
    expect(hits(page)).to_have_count(5)
    return hit(page, "long.wav")


def _moments(long: Locator) -> Locator:
    return long.get_by_role("list", name="Where it is heard, best first").get_by_role("button")


def _start_s(moment: Locator) -> float:
    minutes, seconds = moment.inner_text().split(":")
    return 60 * int(minutes) + int(seconds)


def _heard_s(long: Locator) -> float:
    return float(long.get_by_role("slider").input_value()) / 1000 * LONG_S


def test_playing_starts_at_the_best_moment(
    long: Locator, eventually: Callable[..., object]
) -> None:
    """Each moment is a button that plays from there, and the curve shows where they are."""
    best = _moments(long).first
    expect(best).to_have_attribute("aria-pressed", "true")
    expect(best).to_have_attribute("aria-label", re.compile(r"Play from \d:\d\d to \d:\d\d, score"))
    eventually(lambda: long.evaluate("(node) => node.windows?.length") == LONG_S / 5)
    long.get_by_role("button", name="Play long.wav").click()
    expect(long).to_have_class(re.compile("playing"))
    eventually(lambda: _start_s(best) <= _heard_s(long) < _start_s(best) + 5)
    last = _moments(long).last
    last.click()
    expect(last).to_have_attribute("aria-pressed", "true")
    eventually(lambda: _start_s(last) <= _heard_s(long) < _start_s(last) + 5)


def test_arrows_jump_between_moments(
    page: Page, long: Locator, eventually: Callable[..., object]
) -> None:
    """In the order of time, whatever their scores."""
    starts = sorted(_start_s(each) for each in _moments(long).all())
    assert len(starts) > 1
    pressed = long.locator("[aria-pressed=true]")
    long.focus()
    for key, there in (("ArrowLeft", starts[0]), ("ArrowRight", starts[-1])):
        for _ in starts:
            page.keyboard.press(key)
        assert _start_s(pressed) == there
        eventually(lambda there=there: there <= _heard_s(long) < there + 5)
    expect(long).to_have_class(re.compile("playing"))


def test_an_excerpt_is_downloaded(page: Page, long: Locator) -> None:
    """The moment that is chosen, as a WAV file with the time in its name."""
    moment = _moments(long).last
    moment.click()
    with page.expect_download() as download:
        long.get_by_role("button", name="Download this moment of long.wav").click()
    at = moment.inner_text().replace(":", "-")
    assert download.value.suggested_filename == f"long {at}.wav"
    with wave.open(str(download.value.path())) as file:
        assert file.getnframes() / file.getframerate() >= 5


def test_more_like_a_moment(page: Page, long: Locator) -> None:
    """What is asked by names the second, and the address holds it."""
    _moments(long).last.click()
    start = _moments(long).last.inner_text()
    with page.expect_response(lambda answer: "at_s=" in answer.url) as answered:
        long.get_by_role("button", name="More like this moment of long.wav").click()
    assert answered.value.ok
    expect(page.locator("#by")).to_contain_text(f"Like long.wav at {start}")
    expect(hits(page)).to_have_count(4)
    page.reload()
    expect(page.locator("#by")).to_contain_text(f"Like long.wav at {start}")


def test_short_sounds_have_none_and_nobody_is_kept_out(page: Page, long: Locator) -> None:
    """A sound of one window is shown as before; axe finds no barrier; it fits 320 px."""
    expect(long.locator(".moments")).to_be_visible()
    expect(hit(page, "cowbell.flac").locator(".moments")).to_be_hidden()
    problems = Axe().run(page)
    assert not problems.violations_count, problems.generate_report()
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
