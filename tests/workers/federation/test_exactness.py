"""A federation answers as one deployment that has all items would, page by page."""

from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from audiofuse.core.items import point_id

FIELDS = {
    "newest": "modified", "oldest": "modified", "longest": "duration_s", "shortest": "duration_s",
}  # fmt: skip
TURNED = ("newest", "longest")
NOBODY = "6ba7b810-9dad-51d1-80b4-00c04fd430c8"
RECORDING = str(point_id("field", "field/0033.wav"))


def _same(one: httpx.Response, all_: httpx.Response) -> None:
    """Check that two answers are one, whatever was rounded otherwise."""
    assert one.status_code == all_.status_code == 200, (one.text, all_.text)
    expected, got = one.json(), all_.json()
    assert got.pop("partial") == []
    expected_hits, hits = expected.pop("hits"), got.pop("hits")
    assert got == expected
    assert [_facts(each) for each in hits] == [_facts(each) for each in expected_hits]
    for each, other in zip(hits, expected_hits, strict=True):
        assert each["score"] == pytest.approx(other["score"], abs=1e-5)
        assert each["audio"] == pytest.approx(other["audio"], abs=1e-5)


def _facts(hit: dict[str, Any]) -> Any:
    spans = [(each["start_s"], each["end_s"]) for each in hit["moments"]]
    return hit["id"], hit["payload"], spans


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label": "Dog", "min_duration": 3},
        {"without": "music", "prefix": "music/"},
        {"keyword": "k1", "has_text": "yes", "extra": "true"},
        {"moments": "true"},
        {"min_relevance": 0.35},
        {"unique": "true"},
    ],
)
@pytest.mark.parametrize(("offset", "limit"), [(0, 10), (10, 10), (47, 30)])
def test_each_page_is_that_of_one_deployment(
    one: TestClient, all_: TestClient, options: dict[str, Any], offset: int, limit: int
) -> None:
    """Hits, their parts, moments, relevance, and whether nothing answers."""
    asked = {"q": "a gong", "offset": offset, "limit": limit, **options}
    expected, got = (each.get("/v1/search", params=asked) for each in (one, all_))
    if "unique" in options:  # copies beyond the 200 nearest are named, too
        for hit, other in zip(got.json()["hits"], expected.json()["hits"], strict=True):
            assert set(other["copies"]) <= set(hit["copies"])
    _same(expected, got)


def test_what_is_weighed_anew_is_ranked_as_in_one_deployment(
    one: TestClient, all_: TestClient
) -> None:
    """By a balance, among as many items as both rank anew."""
    asked = {"q": "a gong", "balance": 0.2, "label": "Dog", "offset": 10, "limit": 10}
    _same(one.get("/v1/search", params=asked), all_.get("/v1/search", params=asked))


def test_an_item_of_one_member_is_compared_with_those_of_all(
    one: TestClient, all_: TestClient
) -> None:
    """By itself, by its moment, and with words."""
    for options in ({}, {"at_s": 7, "offset": 5}):
        path = f"/v1/similar/{RECORDING}"
        _same(one.get(path, params=options), all_.get(path, params=options))
    asked = {"q": "a gong", "like": RECORDING, "limit": 5}
    _same(one.post("/v1/search", json=asked), all_.post("/v1/search", json=asked))
    assert all_.get(f"/v1/similar/{NOBODY}").status_code == 404
    assert all_.get(f"/v1/similar/{RECORDING}", params={"at_s": 900}).status_code == 422


def test_pages_end_where_it_is_said(all_: TestClient) -> None:
    """Up to a thousand hits, so that no member is asked for more."""
    last = all_.get("/v1/search", params={"q": "a gong", "offset": 320, "limit": 100})
    assert len(last.json()["hits"]) == 10
    beyond = all_.get("/v1/search", params={"q": "a gong", "offset": 991, "limit": 10})
    assert beyond.status_code == 422
    assert "beyond 1000 hits" in beyond.json()["detail"]
    unique = all_.get("/v1/search", params={"q": "a gong", "offset": 195, "unique": "true"})
    assert "beyond 200 hits" in unique.json()["detail"]


@pytest.mark.parametrize("sort", ["id", "newest", "oldest", "longest", "shortest"])
def test_a_list_of_items_goes_on_where_it_ended(
    one: TestClient, all_: TestClient, sort: str
) -> None:
    """All items once, in the one order; those that share a value by their ids."""
    asked = {"sort": sort, "limit": 70, "label": "Cat"}
    expected = one.get("/v1/items", params=asked | {"limit": 1000}).json()
    found, after, pages = [], "", 0
    while pages == 0 or after:
        page = all_.get("/v1/items", params=asked | {"after": after}).json()
        assert (page["items"], page["partial"]) == (expected["items"], [])
        found += page["found"]
        after, pages = page["next"], pages + 1
    assert pages == 3
    in_order = sorted(expected["found"], key=lambda each: each["id"])
    if field := FIELDS.get(sort):
        in_order.sort(key=lambda each: each["payload"][field], reverse=sort in TURNED)
    assert [each["id"] for each in found] == [each["id"] for each in in_order]


def test_items_are_drawn_from_all_members(all_: TestClient) -> None:
    """At random, each once, and of each member about as many as it has."""
    drawn = all_.get("/v1/items", params={"sort": "random", "limit": 90}).json()
    assert (len({each["id"] for each in drawn["found"]}), drawn["next"]) == (90, "")
    assert {each["payload"]["bucket"] for each in drawn["found"]} == {"field", "music", "city"}


def test_what_items_have_in_common_is_added_up(one: TestClient, all_: TestClient) -> None:
    """Labels, lengths, years and folders of all members; null what was not asked for."""
    for asked in ({}, {"facet": ["labels", "years"], "prefix": "music/", "limit": 1}):
        expected = one.get("/v1/facets", params=asked).json()
        assert all_.get("/v1/facets", params=asked).json() == expected | {"partial": []}


def test_an_item_is_told_by_whoever_has_it(one: TestClient, all_: TestClient) -> None:
    """One by one or several, its windows, its vector; and nobody has what is not there."""
    for path in ("", "/timeline?q=a gong", "/vector"):
        got, expected = (each.get(f"/v1/items/{RECORDING}{path}") for each in (all_, one))
        assert got.json() == expected.json()
    ids = [RECORDING, NOBODY, str(point_id("city", "city/0002.wav"))]
    several = all_.post("/v1/items", json={"ids": ids}).json()
    assert [each["id"] for each in several["items"]] == [ids[0], ids[2]]
    assert all_.get(f"/v1/items/{NOBODY}").status_code == 404
    assert all_.get("/v1/embed", params={"q": "rain"}).json() == (
        one.get("/v1/embed", params={"q": "rain"}).json()
    )
