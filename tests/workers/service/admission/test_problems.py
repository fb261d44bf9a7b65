"""How the service refuses: each error is a problem in words, and tells nothing of our insides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from audiofuse.core.errors import Unavailable
from audiofuse.core.search.search import Searcher

SOUNDS = Path(__file__).parents[4] / "examples" / "sounds"
Problem = Callable[[httpx.Response, int, str], str]


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({}, "q: Field required"),
        ({"q": ""}, "no words"),
        ({"q": "?!"}, "no words"),
        ({"q": "x" * 1001}, "q: "),
        ({"q": "a", "frobnicate": "1"}, "frobnicate"),
        ({"q": "a", "limit": "0"}, "limit"),
        ({"q": "a", "limit": "many"}, "limit"),
        ({"q": "a", "offset": "9999", "limit": "2"}, "narrow"),
        ({"q": "a", "balance": "nan"}, "balance"),
        ({"q": "a", "min_duration": "inf"}, "min_duration"),
        ({"q": "a", "since": "yesterday"}, "since"),
        ({"q": "a", "has_text": "perhaps"}, "has_text"),
        ({"q": "a", "keyword": ["x"] * 21}, "keyword"),
    ],
)
def test_a_bad_question_is_a_problem_that_names_it(
    client: TestClient, parameters: dict[str, Any], told: str, problem: Problem
) -> None:
    """Each parameter that cannot be meant is named in words."""
    assert told in problem(client.get("/v1/search", params=parameters), 422, "bad-question")


@pytest.mark.parametrize(
    "text",
    [
        "ein Hund bellt", "собака лает", "犬が吠える", "🐕", "a\x00b", "a" * 1000,
        "'; DROP TABLE items; --", "<script>alert(1)</script>", "{{7*7}} ${jndi:ldap://x}",
        "\u202e",
    ],
)  # fmt: skip
def test_any_words_are_an_ordinary_question(
    client: TestClient, text: str, problem: Problem
) -> None:
    """Other languages, control characters and injected code are read as words, or have none."""
    answer = client.get("/v1/search", params={"q": text})
    assert answer.status_code == 200 or "no words" in problem(answer, 422, "bad-question")
    posted = client.post("/v1/search", json={"q": text})
    assert posted.status_code == answer.status_code


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"q": 1}', b'{"q": "\\ud800"}', b'{"q": "a", "limit": 1e9}',
     b'{"q": "a", "balance": NaN}', b'{"like": "../../etc"}', b"[" * 50_000,
     b'{"like": "6ba7b810-9dad-51d1-80b4-00c04fd430c8", "x": 1}'],
)  # fmt: skip
def test_a_body_that_is_no_question_is_a_problem(client: TestClient, body: bytes) -> None:
    """Whatever is posted ends as a problem, and the service goes on."""
    answer = client.post("/v1/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert answer.json()["detail"]
    assert client.get("/v1/search", params={"q": "a gong"}).status_code == 200


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"no sound", "not-audio"),
        (b"\0" * 10_000, "not-audio"),
        ((SOUNDS / "music/cowbell.flac").read_bytes()[:5000], "damaged"),
    ],
)
def test_a_sound_that_cannot_be_heard_is_a_problem(
    client: TestClient, content: bytes, kind: str, problem: Problem
) -> None:
    """The reason is the problem's type, and nothing of our files is told."""
    answer = client.post("/v1/search/sound", content=content)
    assert "/tmp" not in problem(answer, 422, kind)


def test_silence_and_long_sounds_are_refused(client: TestClient, problem: Problem) -> None:
    """Nothing can sound like silence, and a sound to search by has a minute at most."""
    assert "silent" in problem(_post_wave(client, 1), 422, "silent")
    assert "60 s" in problem(_post_wave(client, 61), 422, "too-long")


def _post_wave(client: TestClient, seconds: int) -> httpx.Response:
    size = seconds * 8000  # 8 kHz, 8 bit, mono; 128 is zero
    header = b"RIFF%sWAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0@\x1f\0\0\1\0\x08\0data%s"
    header %= (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
    return client.post("/v1/search/sound", content=header + b"\x80" * size)


def test_an_unknown_item_is_not_found(client: TestClient, problem: Problem) -> None:
    """An id without an item is a 404, and what is no id is said to be none."""
    unknown = "6ba7b810-9dad-51d1-80b4-00c04fd430c8"
    for path in ("items", "similar"):
        assert unknown in problem(client.get(f"/v1/{path}/{unknown}"), 404, "not-found")
        problem(client.get(f"/v1/{path}/gong.ogg"), 422, "bad-question")
    problem(client.post("/v1/search", json={"like": unknown}), 404, "not-found")
    problem(client.get("/v1/nothing"), 404, "not-found")
    problem(client.delete("/v1/search"), 405, "method-not-allowed")


def test_a_stopped_index_is_told_without_its_address(
    client: TestClient,
    searcher: Searcher,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    problem: Problem,
) -> None:
    """While the index is away the answer is 503 with when to come back; where it is, is logged."""
    with monkeypatch.context() as patch:
        patch.setattr(searcher._index, "search", _away)
        answer = client.get("/v1/search", params={"q": "a gong"})
    assert "10.1.2.3" not in problem(answer, 503, "unavailable") + str(answer.headers)
    assert answer.headers["retry-after"] == "5"
    assert "10.1.2.3" in caplog.text
    assert client.get("/v1/search", params={"q": "a gong"}).status_code == 200


def _away(*_: object, **__: object) -> None:
    raise Unavailable("Qdrant does not answer at http://10.1.2.3:6333: secret-host")


def test_a_bug_tells_nothing_of_our_insides(
    client: TestClient, searcher: Searcher, monkeypatch: pytest.MonkeyPatch, problem: Problem
) -> None:
    """An unexpected exception is a plain 500, and its message stays here."""

    def fail(*_: object) -> None:
        raise RuntimeError("password hunter2")

    monkeypatch.setattr(searcher, "search", fail)
    answer = client.get("/v1/search", params={"q": "a gong"})
    assert "hunter2" not in problem(answer, 500, "bug")
