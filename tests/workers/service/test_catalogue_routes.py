"""What the service tells without a question: items, facets, duplicates, exports."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi.testclient import TestClient

from audiofuse.workers.service.admission.problems import Refusal
from audiofuse.workers.service.catalogue import Exports

ALL = ["animals/owl.wav", "music/cowbell.flac", "music/gong.ogg", "music/piano.wav"]
SEARCH_KEY, FULL_KEY = "k" * 16, "f" * 16


def _get(client: TestClient, path: str, **options: Any) -> dict[str, Any]:
    answer = client.get(path, params=options)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_items_are_listed_page_by_page(client: TestClient, version: Path) -> None:
    """Each page says how many there are and with what the next is asked; all are met once."""
    met, after = [], ""
    for _ in ALL:
        page = _get(client, "/v1/items", limit=1, after=after)
        assert (page["items"], page["encoder"]) == (4, version.name)
        met += [each["key"] for each in page["found"]]
        after = page["next"]
    assert (sorted(met), after) == (ALL, "")


def test_items_come_in_an_order_and_by_a_filter(client: TestClient) -> None:
    """The longest first, or by chance; only those that pass; each with its link, nothing hidden."""
    longest = _get(client, "/v1/items", sort="longest")["found"]
    lengths = [each["payload"]["duration_s"] for each in longest]
    assert lengths == sorted(lengths, reverse=True)
    assert all(each["audio_url"] for each in longest)
    assert not longest[0]["payload"].keys() & {"item_norm", "user_metadata_hash", "extra"}
    some = _get(client, "/v1/items", sort="random", prefix="music/", limit=10)
    assert sorted(each["key"] for each in some["found"]) == ALL[1:]
    assert _get(client, "/v1/items", label="Gong")["items"] == 1


def test_facets_count_what_filters_let_through(client: TestClient) -> None:
    """Each value with its number, which is what a filter by it finds."""
    facets = _get(client, "/v1/facets")
    assert facets["items"] == 4
    for name, option in (("labels", "label"), ("keywords", "keyword"), ("has_text", "has_text")):
        assert facets[name]
        for each in facets[name]:
            found = _get(client, "/v1/items", **{option: each["value"]})
            assert found["items"] == each["items"]
    for span in facets["lengths"]:
        bounds = {name: span[name] for name in ("min_duration", "max_duration") if span[name]}
        assert _get(client, "/v1/items", **bounds)["items"] == span["items"]
    assert sum(each["items"] for each in facets["lengths"]) == 4
    assert sum(each["items"] for each in facets["years"]) == 4
    assert facets["folders"] == [
        {"value": "music/", "items": 3}, {"value": "animals/", "items": 1},
    ]  # fmt: skip
    assert facets["folders_complete"]


def test_facets_are_told_as_they_are_asked_for(client: TestClient) -> None:
    """Only what is wanted is counted, of what passes the filter, and no more than so many."""
    facets = _get(client, "/v1/facets", facet=["keywords", "folders"], prefix="music/", limit=1)
    assert (facets["items"], len(facets["keywords"])) == (3, 1)
    assert facets["folders"] == []
    assert facets["labels"] is facets["lengths"] is facets["years"] is None


def test_duplicates_of_sound_are_told_once(client: TestClient) -> None:
    """Nothing has the same bytes here; what sounds alike is told in pairs that come once."""
    assert _get(client, "/v1/duplicates")["groups"] == []
    groups = _get(client, "/v1/duplicates", alike=0.5)["groups"]
    pairs = [
        frozenset((group["items"][0]["key"], other["key"]))
        for group in groups
        for other in group["items"][1:]
    ]
    assert len(pairs) == len(set(pairs))
    assert all(item["likeness"] >= 0.5 for group in groups for item in group["items"])


def test_everything_is_exported_line_by_line(client: TestClient) -> None:
    """Each line is an item with all that its sidecar says; an export goes on behind any line."""
    answer = client.get("/v1/export")
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert sorted(each["key"] for each in lines) == ALL
    assert all("extra" in each["payload"] for each in lines)
    rest = client.get("/v1/export", params={"after": lines[1]["id"]}).text.splitlines()
    assert [json.loads(line) for line in rest] == lines[2:]
    some = client.get("/v1/export", params={"label": "Gong"}).text
    assert [json.loads(line)["key"] for line in some.splitlines()] == ["music/gong.ogg"]


def test_an_export_needs_its_own_scope(
    open_to: Callable[..., TestClient], bucket: Path, version: Path,
    problem: Callable[[httpx.Response, int, str], str], bearer: Callable[[str], dict[str, str]],
) -> None:  # fmt: skip
    """Who may search may not take everything along, unless the key says so."""
    keys = f"kiosk:{SEARCH_KEY}:search,archive:{FULL_KEY}:search+export"
    client = open_to(bucket=str(bucket), encoder=version, api_keys=keys)
    refused = client.get("/v1/export", headers=bearer(SEARCH_KEY))
    assert "export" in problem(refused, 403, "not-allowed")
    assert client.get("/v1/export", headers=bearer(FULL_KEY)).status_code == 200
    assert client.get("/v1/items", headers=bearer(SEARCH_KEY)).status_code == 200


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/v1/items", {"after": "5.0~nobody", "sort": "longest"}),
        ("/v1/items", {"limit": 1001}),
        ("/v1/facets", {"facet": "secrets"}),
        ("/v1/duplicates", {"after": "99999"}),
        ("/v1/export", {"after": "nobody"}),
        ("/v1/items", {"until": "0"}),  # which would be 1970
    ],
)
def test_what_cannot_be_told_is_refused(
    client: TestClient, problem: Callable[[httpx.Response, int, str], str],
    path: str, options: dict[str, Any],
) -> None:  # fmt: skip
    """A page that is none, or too large, is the question's fault."""
    problem(client.get(path, params=options), 422, "bad-question")


def test_exports_are_few_and_end() -> None:
    """One that runs refuses another; one that nobody reads is broken off, and the next begins."""
    exports = Exports(at_once=1, longest_s=0.2)

    def lines() -> Iterator[bytes]:
        yield b"{}\n"
        yield b"{}\n"

    async def run() -> list[str]:
        async def never_read(message: Any) -> None:
            told.append(message["type"])
            if message.get("body"):
                await anyio.sleep_forever()

        told: list[str] = []
        answer: Any = await exports.answer(lines())
        with pytest.raises(Refusal, match="are running"):
            await exports.answer(lines())
        await answer.stream_response(never_read)
        await exports.answer(lines())
        return told

    assert anyio.run(run) == ["http.response.start", "http.response.body"]
    assert threading.active_count() < 50


def test_the_map_has_every_item(client: TestClient, eventually: Callable[..., Any]) -> None:
    """Who looks first is told that it is drawn; who knows the map is not told it again."""
    assert client.get("/v1/map").json()["state"] == "drawing"

    def final() -> dict[str, Any] | None:
        told = client.get("/v1/map").json()
        return told if told["state"] == "final" else None

    told = eventually(final)
    hits = client.get("/v1/search", params={"q": "a sound"}).json()["hits"]
    assert {each["id"] for each in told["places"]} == {hit["id"] for hit in hits}
    assert told["items"] == len(hits)
    gong = next(each for each in told["places"] if each["title"] == "Gong")
    assert gong["key"] == "music/gong.ogg"
    assert max(abs(each[axis]) for each in told["places"] for axis in "xy") <= 1
    again = client.get("/v1/map", params={"known": told["number"]}).json()
    assert again == told | {"places": None}
