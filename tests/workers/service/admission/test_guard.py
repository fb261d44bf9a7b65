"""Whom the service lets in: keys, scopes, rates, sizes, other pages, and what browsers may do."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.workers.service.admission.entrance import check_exposure
from audiofuse.workers.service.admission.guard import Keys, Rates
from audiofuse.workers.service.app import create_app

ALL, WORDS = "all-of-it-0123456789", "words-only-0123456789"
API_KEYS = SecretStr(f"all:{ALL}, words:{WORDS}:search")
Problem = Callable[[httpx.Response, int, str], str]
Bearer = Callable[[str], dict[str, str]]
OpenTo = Callable[..., TestClient]


def test_too_large_bodies_are_refused_before_they_are_read(
    searcher: Searcher,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
    tmp_path: Path,
    problem: Problem,
) -> None:
    """What its header says, or what arrives, may be no more than the limit; 2 GB never arrive."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(2000):
            sent += 1024**2
            yield bytes(1024**2)

    settings = Settings(home=tmp_path, max_query_bytes=10_000)
    with serving(create_app(searcher, settings)) as url, httpx.Client(base_url=url) as client:
        problem(client.post("/v1/search/sound", content=bytes(10_001)), 413, "too-large")
        problem(client.post("/v1/search", content=bytes(70_000)), 413, "too-large")
        try:
            answer = client.post("/v1/search/sound", content=endless())
        except httpx.TransportError:
            pass  # it was hung up on, before it looked for an answer
        else:
            problem(answer, 413, "too-large")
        assert sent < 200 * 1024**2
        assert client.get("/v1/search", params={"q": "a gong"}).status_code == 200


def test_without_a_valid_key_nothing_is_told(
    bucket: Path, problem: Problem, bearer: Bearer, open_to: OpenTo
) -> None:
    """A missing, wrong or misplaced key is a 401 on every route of the API; probes need none."""
    client = open_to(bucket=str(bucket), api_keys=API_KEYS)
    wrong: list[Any] = [
        {}, bearer("x" * 20), bearer(ALL[:-1]), bearer(""), {"Authorization": f"Basic {ALL}"},
        {"Authorization": ALL}, {"Authorization": "Bearer \xe9".encode("latin-1")},
    ]  # fmt: skip
    for path in ("search?q=a", "search", "items", "embed?q=a", "encoders/x/query.zip", "nothing"):
        for headers in wrong:
            answer = client.get(f"/v1/{path}", headers=headers)
            assert "Bearer" in problem(answer, 401, "no-key")
            assert answer.headers["www-authenticate"] == "Bearer"
    assert client.post("/v1/search/sound", content=b"x").status_code == 401
    assert client.get("/readyz").status_code == 200
    assert client.get("/v1/search", params={"q": "a"}, headers=bearer(ALL)).status_code == 200


def test_a_key_is_needed_wherever_it_is_mounted(
    searcher: Searcher, bucket: Path, bearer: Bearer
) -> None:
    """Under another path of another application the API is guarded, and links lead there."""
    outer = FastAPI()
    outer.mount("/sounds", create_app(searcher, Settings(bucket=str(bucket), api_keys=API_KEYS)))
    client = TestClient(outer)
    for path in ("/sounds/v1/items", "/sounds//v1/items", "/sounds/%76%31/items"):
        assert client.get(path).status_code in {401, 404}
    answer = client.get("/sounds/v1/search", params={"q": "a gong"}, headers=bearer(ALL))
    url = answer.json()["hits"][0]["audio_url"]
    assert url.startswith("/sounds/v1/audio/")
    assert client.get(url).status_code == 200


def test_only_the_scope_audio_gets_links(bucket: Path, bearer: Bearer, open_to: OpenTo) -> None:
    """A key for searching alone sees no link; the link itself then needs no key."""
    client = open_to(bucket=str(bucket), api_keys=API_KEYS)

    def links(key: str) -> set[Any]:
        answer = client.get("/v1/search", params={"q": "a gong"}, headers=bearer(key))
        return {hit["audio_url"] for hit in answer.json()["hits"]}

    assert links(WORDS) == {None}
    heard = links(ALL)
    assert len(heard) == 4
    assert client.get(heard.pop()).status_code == 200


@pytest.mark.parametrize(
    "listed", ["short:abc", "x" * 30, ":" + "x" * 30, f"name:{ALL}:search+write"]
)
def test_keys_that_cannot_be_meant_stop_the_service(listed: str) -> None:
    """A key without a name, a short one or an unknown scope is a wrong setting; no key is shown."""
    with pytest.raises(ConfigurationError, match="AUDIOFUSE_API_KEYS") as error:
        Keys(SecretStr(listed))
    assert "xxx" not in str(error.value)
    assert ALL not in str(error.value)


@pytest.mark.parametrize(
    ("host", "keys", "is_open", "allowed"),
    [
        ("127.0.0.1", None, False, True),
        ("localhost", None, False, True),
        ("::1", None, False, True),
        ("0.0.0.0", None, False, False),
        ("sounds.example", None, False, False),
        ("0.0.0.0", API_KEYS, False, True),
        ("0.0.0.0", None, True, True),
    ],
)
def test_an_open_service_listens_to_this_machine_only(
    host: str, keys: SecretStr | None, *, is_open: bool, allowed: bool
) -> None:
    """Without keys no other machine is listened to, unless that is said."""
    if allowed:
        check_exposure(host, Settings(api_keys=keys), is_open=is_open)
    else:
        with pytest.raises(ConfigurationError, match="--open"):
            check_exposure(host, Settings(api_keys=keys), is_open=is_open)


def test_who_asks_too_often_waits(problem: Problem, bearer: Bearer, open_to: OpenTo) -> None:
    """Beyond its rate a key gets 429 and when to come back; another key is not concerned."""
    client = open_to(api_keys=API_KEYS, rate_limit=0.5)
    statuses = [client.get("/v1/items", headers=bearer(ALL)).status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    answer = client.get("/v1/items", headers=bearer(ALL))
    problem(answer, 429, "too-often")
    assert 1 <= int(answer.headers["retry-after"]) <= 2
    assert client.get("/v1/items", headers=bearer(WORDS)).status_code == 200
    guesses = [client.get("/v1/items", headers=bearer("x" * 20)).status_code for _ in range(4)]
    assert guesses == [401, 401, 429, 429]


def test_rates_recover_and_forget() -> None:
    """Tokens come back with time, and no more senders are remembered than fit."""
    rates = Rates(2, remembered=100)
    assert [rates.take("a", 0) for _ in range(10)] == [0] * 10
    assert rates.take("a", 0) == pytest.approx(0.5)
    assert rates.take("a", 0.5) == 0
    for number in range(10_000):
        rates.take(str(number), 1)
    assert rates.senders == 100


def test_other_pages_may_ask_only_where_they_are_listed(open_to: OpenTo) -> None:
    """CORS is off by default; a listed origin may send its key, another may not."""
    asking = {
        "Origin": "https://a.example", "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization",
    }  # fmt: skip
    name = "access-control-allow-origin"
    assert name not in open_to().options("/v1/items", headers=asking).headers
    listing = open_to(cors_origins="https://b.example, https://a.example",
                      api_keys=API_KEYS)  # fmt: skip
    preflight = listing.options("/v1/items", headers=asking)
    assert (preflight.status_code, preflight.headers[name]) == (200, "https://a.example")
    refused = listing.get("/v1/items", headers={"Origin": "https://a.example"})
    assert (refused.status_code, refused.headers[name]) == (401, "https://a.example")
    other = listing.options("/v1/items", headers=asking | {"Origin": "https://c.example"})
    assert name not in other.headers


def test_answers_are_safe_in_a_browser(client: TestClient) -> None:
    """Nothing is loaded from elsewhere or guessed, what is private is not stored."""
    headers = client.get("/v1/items").headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "server" not in headers
