"""What becomes of an answer when members are slow, gone, hostile, or of another encoder."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response
from fastapi.responses import RedirectResponse
from fastapi.testclient import TestClient
from pydantic import SecretStr

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.settings import Settings
from audiofuse.workers.deployment.local import free_port
from audiofuse.workers.federation import members
from audiofuse.workers.federation.app import create_federation
from audiofuse.workers.federation.members import Asked, Line, Member, read_members
from audiofuse.workers.federation.merging import agreed

Serving = Callable[[FastAPI], AbstractContextManager[str]]
Making = Callable[..., FastAPI]
Asking = Callable[..., TestClient]
GONG = {"q": "a gong", "limit": 5}
PATIENCE_S = 3
HANGS = {"odd": f"did not answer within {PATIENCE_S} s"}
ALL_KEY, WORDS_KEY, OURS = "all-of-it-0123456789", "words-only-0123456789", "ours-0123456789abcdef"


def _reasons(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {each["member"]: each["reason"] for each in answer.json()["partial"]}


class Odd:
    """A member that answers as it is told to, and counts how often it is asked."""

    def __init__(self) -> None:
        self.answer: Response | None = Response(status_code=500)  # none: not until it is let go
        self.asked = 0
        self.authorised: list[str] = []
        self.app = FastAPI()
        self._let_go = threading.Event()
        for method in (self.app.get, self.app.post):
            method("/{path:path}")(self._answer)

    def let_go(self) -> None:
        """Answer whoever waits."""
        self._let_go.set()

    async def _answer(self, path: str) -> Response:
        del path
        self.asked += 1
        if self.answer is None:
            await asyncio.to_thread(self._let_go.wait, 30)
        return self.answer or Response("{}")


@pytest.fixture
def odd(serving: Serving) -> Iterator[Odd]:
    """Serve a member that answers oddly, under its attribute ``url``."""
    member = Odd()
    with serving(member.app) as url:
        member.url = url  # type: ignore[attr-defined]
        yield member
        member.let_go()


@pytest.fixture
def beside(odd: Odd, asking: Asking, urls: dict[str, str]) -> TestClient:
    """Return a client of a federation of a good member and the odd one."""
    return asking({"field": urls["field"], "odd": odd.url}, ask_s=PATIENCE_S)  # type: ignore[attr-defined]


def test_a_member_that_hangs_is_waited_for_once(odd: Odd, beside: TestClient) -> None:
    """It is named; nobody waits for it again until it has answered in time, aside."""
    odd.answer = None
    assert _reasons(beside.get("/v1/search", params=GONG)) == HANGS
    before = odd.asked
    for _ in range(5):
        answer = beside.get("/v1/search", params=GONG)
        assert _reasons(answer) == HANGS
        assert len(answer.json()["hits"]) == 5
    assert odd.asked <= before + 1  # tried aside


class Closing:
    """A member that answers one question a connection, and closes it once the next one came."""

    def __init__(self) -> None:
        self.asked = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._server.accept()
            threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            self._read(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            self._read(connection)

    def _read(self, connection: socket.socket) -> None:
        self.asked += bool(connection.recv(65_536))


def test_a_kept_connection_that_is_just_closed_costs_no_answer() -> None:
    """The question is put again, once, on another connection; a new one that fails is not."""
    closing = Closing()

    async def ask() -> list[bytes]:
        line = Line(Member("odd", closing.url), PATIENCE_S)
        try:
            return [await line.ask(Asked("/v1/items")) for _ in range(2)]
        finally:
            await line.close()

    assert asyncio.run(ask()) == [b"{}", b"{}"]
    assert closing.asked == 3


def test_a_member_that_answers_again_takes_part_again(
    odd: Odd, beside: TestClient, monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
) -> None:  # fmt: skip
    """The question that is put to it aside brings it back."""
    monkeypatch.setattr(members, "TRY_S", 0.0)
    odd.answer = None
    assert "did not answer" in _reasons(beside.get("/v1/search", params=GONG))["odd"]
    odd.answer = Response('{"encoder": null, "nothing": null, "hits": []}')
    odd.let_go()
    eventually(lambda: not _reasons(beside.get("/v1/search", params=GONG)))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Response("not JSON"), "does not understand"),
        (Response('{"hits": 7}'), "does not understand"),
        (Response('{"detail": "no"}', 401), "refuses our key"),
        (Response('{"detail": "busy"}', 503), "answers 503: busy"),
        (Response(b"x" * 2000), "more than 0 MiB"),
    ],
)
def test_an_answer_that_is_none_is_named(
    odd: Odd, beside: TestClient, answer: Response, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a member says instead of hits, the others' hits are told."""
    monkeypatch.setattr(members, "MOST_BYTES", 100_000 if len(answer.body) < 1000 else 1000)
    odd.answer = answer
    if len(answer.body) < 1000:
        found = beside.get("/v1/search", params=GONG)
        assert len(found.json()["hits"]) == 5
        assert reason in _reasons(found)["odd"]
    else:  # the good one says more, too
        refused = beside.get("/v1/search", params=GONG)
        assert refused.status_code == 503
        assert reason in refused.json()["detail"]


def test_redirects_of_a_member_lead_nowhere(odd: Odd, beside: TestClient) -> None:
    """A member may not have us ask somebody else, with its key or without."""
    odd.answer = RedirectResponse("http://169.254.169.254/latest/meta-data")
    assert _reasons(beside.get("/v1/search", params=GONG))["odd"].startswith("answers 307")
    played = beside.get("/v1/audio/odd/a.wav", params={"expires": 1, "signature": "x"})
    assert played.status_code == 503
    odd.answer = Response(
        '{"items": 1, "encoder": null, "next": "", "found": [{"id": "a", "key": "a", "payload": {},'
        '"audio_url": "javascript:alert(1)", "location": null}]}'
    )
    told = beside.get("/v1/items", params={"limit": 1000}).json()
    assert [each["audio_url"] for each in told["found"] if each["id"] == "a"] == [None]


def test_only_named_members_are_asked(beside: TestClient) -> None:
    """Whoever asks cannot name another one."""
    for name in ("nobody", "127.0.0.1", "..", "field@odd"):
        asked = beside.get(f"/v1/audio/{name}/a.wav", params={"expires": 1, "signature": "x"})
        assert asked.status_code in {404, 501}


def test_without_any_member_there_is_no_answer(asking: Asking) -> None:
    """All are gone: 503, who they are and why, and not ready."""
    nobody = asking({"a": f"http://127.0.0.1:{free_port()}"})
    answer = nobody.get("/v1/search", params=GONG)
    assert answer.status_code == 503
    assert "a: does not answer" in answer.json()["detail"]
    assert nobody.get("/readyz").status_code == 503
    assert nobody.get("/healthz").json() == {"status": "alive", "members": ["a"]}


def test_an_item_that_a_lost_member_may_have_is_not_denied(
    asking: Asking, urls: dict[str, str]
) -> None:
    """Nobody that answers has it, so that nobody knows."""
    half = asking({"field": urls["field"], "gone": f"http://127.0.0.1:{free_port()}"})
    answer = half.get("/v1/items/6ba7b810-9dad-51d1-80b4-00c04fd430c8")
    assert answer.status_code == 503
    assert "gone: does not answer" in answer.json()["detail"]


def test_a_member_of_another_encoder_has_no_part(
    member: Making, serving: Serving, asking: Asking, urls: dict[str, str]
) -> None:
    """Scores of two encoders are not comparable: the version that most have is asked."""
    with serving(member([0, 1], "tiny-111111")) as other:
        both = asking({"other": other, "field": urls["field"], "music": urls["music"]})
        found = both.get("/v1/search", params=GONG)
        assert _reasons(found) == {"other": "speaks encoder tiny-111111, not tiny-000000"}
        assert found.json()["encoder"] == "tiny-000000"
        like = both.get(f"/v1/similar/{found.json()['hits'][0]['id']}")
        assert "tiny-111111" in _reasons(like)["other"]
        assert both.get("/v1/items").json()["items"] == 2 + 220  # which needs no encoder


def test_of_two_versions_as_many_have_the_first_named_member_decides() -> None:
    """So that a rollout, member by member, changes over at once."""
    assert agreed(["new", "old"]) == "new"
    assert agreed(["new", "old", "old", None]) == "old"
    assert agreed([None]) is None


def test_callers_and_members_have_keys_of_their_own(
    member: Making, serving: Serving, asking: Asking
) -> None:
    """A caller's key is checked here and goes no further; links are for those who may hear."""
    ours = {"api_keys": SecretStr(f"ann:{ALL_KEY},kiosk:{WORDS_KEY}:search")}
    with serving(member([0], api_keys=SecretStr(f"fed:{OURS}"))) as url:
        client = asking({"m": url}, ask_keys=SecretStr(f"m:{OURS}"), **ours)
        assert client.get("/v1/search", params=GONG).status_code == 401
        for key in (ALL_KEY, WORDS_KEY):
            bearer = {"Authorization": f"Bearer {key}"}
            assert _reasons(client.get("/v1/search", params=GONG, headers=bearer)) == {}
        bearer = {"Authorization": f"Bearer {WORDS_KEY}"}
        assert client.get(
            "/v1/items/6ba7b810-9dad-51d1-80b4-00c04fd430c8/excerpt?start_s=0&end_s=1",
            headers=bearer,
        ).status_code == 403  # fmt: skip
        unknown = asking({"m": url})
        refused = unknown.get("/v1/search", params=GONG)
        assert (refused.status_code, "refuses our key" in refused.text) == (503, True)


def test_keys_with_folders_are_refused() -> None:
    """Members know one key, ours, so that parts of it cannot be promised to anybody."""
    settings = Settings(
        ask="http://127.0.0.1:7700", api_keys=SecretStr(f"ann:{ALL_KEY}:search@field/")
    )
    with pytest.raises(ConfigurationError, match="folders"):
        create_federation(settings)


@pytest.mark.parametrize(
    ("ask", "keys", "said"),
    [
        ("ftp://a", None, "no http URL"),
        ("http://u:secret@a", None, "no http URL"),
        ("a=http://x,a=http://y", None, "one name"),
        ("a b=http://x", None, "no name"),
        ("a=http://x", "b:key", "no member is called b"),
        ("a=http://x", "key", "name:key"),
        ("", None, "names no deployment"),
    ],
)
def test_what_names_no_members_is_told(ask: str, keys: str | None, said: str) -> None:
    """At the start, with what is wrong, and no secret."""
    settings = Settings(ask=ask, ask_keys=SecretStr(keys) if keys else None)
    with pytest.raises(ConfigurationError, match=said) as told:
        create_federation(settings)
    assert "secret" not in str(told.value)


def test_members_are_called_by_a_name_or_their_address() -> None:
    """``name=URL`` or URL; a key is found by either, and shown nowhere."""
    settings = Settings(
        ask="field=https://a/audio/, http://b:7700", ask_keys=SecretStr("b:7700:k,field:m")
    )
    field, b = read_members(settings)
    assert (field.name, field.url, field.key) == ("field", "https://a/audio", "m")
    assert (b.name, b.key) == ("b:7700", "k")
    assert "'k'" not in repr(b)
