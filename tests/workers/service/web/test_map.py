"""The map: what is pointed at is heard, a line selects, a question lights up, keys suffice."""

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Locator, Page, expect
from search_page import ask, hits

LOOK = """([left, top]) => {
    const canvas = document.querySelector("#map > canvas"), scale = devicePixelRatio;
    return canvas.getContext("2d").getImageData(left * scale, top * scale, 1, 1).data[3];
}"""
Place = tuple[float, float]


@pytest.fixture
def drawn(page: Page) -> Page:
    """Return the page with the map, once that is final."""
    page.get_by_role("link", name="Map").click()
    expect(page.locator("#map .said")).to_have_text("4 of 4 sounds")
    return page


def _plane(page: Page) -> Locator:
    return page.get_by_role("application")


def _places(page: Page) -> dict[str, Place]:
    """Return where on the canvas each sound is."""
    told: dict[str, Any] = page.evaluate("fetch('v1/map').then((answer) => answer.json())")
    box = _plane(page).bounding_box()
    assert box
    half = min(box["width"], box["height"]) / 2 * 0.92
    return {
        each["key"]: (box["width"] / 2 + each["x"] * half, box["height"] / 2 - each["y"] * half)
        for each in told["places"]
    }


def _here(page: Page) -> Locator:
    return page.get_by_role("list", name="The sound that is pointed at")


def test_what_is_pointed_at_is_heard(drawn: Page) -> None:
    """It plays and is shown as a hit; unless that is not wanted."""
    left, top = _places(drawn)["music/gong.ogg"]
    _plane(drawn).hover(position={"x": left, "y": top})
    expect(_here(drawn).get_by_role("button", name="Pause Gong")).to_be_visible()
    drawn.get_by_label("Play what is pointed at").uncheck()
    left, top = _places(drawn)["animals/owl.wav"]
    _plane(drawn).hover(position={"x": left, "y": top})
    expect(_here(drawn).get_by_role("button", name="Play Owl")).to_be_visible()


def test_a_line_around_sounds_selects_them(drawn: Page) -> None:
    """All that it encloses, to be taken along; the address has them."""
    box = _plane(drawn).bounding_box()
    assert box
    edges = [(0.01, 0.01), (0.99, 0.01), (0.99, 0.99), (0.01, 0.99)]
    corners = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in edges]
    drawn.mouse.move(*corners[0])
    drawn.mouse.down()
    for corner in corners[1:]:
        drawn.mouse.move(*corner, steps=4)
    drawn.mouse.up()
    bar = drawn.get_by_role("region", name="Selected sounds")
    expect(bar).to_contain_text("4 sounds selected")
    drawn.reload()
    expect(bar).to_contain_text("4 sounds selected")
    expect(_plane(drawn)).to_be_visible()


def test_what_answers_a_question_lights_up(drawn: Page) -> None:
    """All else fades, or is not shown where a folder is chosen; a bucket is the first of one."""
    places = _places(drawn)
    assert min(drawn.evaluate(LOOK, place) for place in places.values()) > 180
    drawn.get_by_role("button", name="Filters").click()
    drawn.get_by_label("Label", exact=True).fill("Owl")
    ask(drawn, "an owl")
    _await_light(drawn, "look(owl) > 180 && look(gong) > 0 && look(gong) < 100")
    drawn.get_by_label("Label", exact=True).fill("")
    drawn.get_by_label("In folder").fill("animals/")
    ask(drawn, "an owl")
    _await_light(drawn, "look(owl) > 180 && look(gong) === 0")
    expect(drawn.locator("#map .said")).to_contain_text("4 of 4 sounds, of these 1 in animals/")


def _await_light(page: Page, looks: str) -> None:
    places = _places(page)
    at = [places["animals/owl.wav"], places["music/gong.ogg"]]
    page.wait_for_function(f"([owl, gong]) => {{ const look = {LOOK}; return {looks}; }}", arg=at)


def test_the_map_needs_no_pointer(drawn: Page) -> None:
    """Arrows go from sound to sound, space plays, x selects, m leaves for more of the same."""
    drawn.get_by_label("Play what is pointed at").uncheck()
    _plane(drawn).focus()
    drawn.keyboard.press("ArrowRight")
    expect(_here(drawn).locator(".hit")).to_have_count(1)
    drawn.keyboard.press("+")
    drawn.keyboard.press("Space")
    expect(_here(drawn).locator(".hit.playing")).to_have_count(1)
    drawn.keyboard.press("x")
    expect(drawn.get_by_role("region", name="Selected sounds")).to_contain_text("1 sound")
    drawn.keyboard.press("m")
    expect(hits(drawn)).to_have_count(3)
    expect(_plane(drawn)).to_be_hidden()
    drawn.go_back()
    expect(_plane(drawn)).to_be_visible()


def test_nobody_is_kept_out_of_the_map(drawn: Page) -> None:
    """Axe finds no barrier, and it fits a phone of 320 px."""
    _plane(drawn).focus()
    drawn.keyboard.press("ArrowRight")
    expect(_here(drawn).locator(".hit")).to_have_count(1)
    problems = Axe().run(drawn)
    assert not problems.violations_count, problems.generate_report()
    drawn.set_viewport_size({"width": 320, "height": 640})
    assert drawn.evaluate("document.documentElement.scrollWidth") <= 320
