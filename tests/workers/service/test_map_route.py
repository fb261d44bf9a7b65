"""The map over HTTP: rough, then final, and nothing twice."""

from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient


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
