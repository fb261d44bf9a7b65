"""Feedback: what a listener may say of hits, who may, and what is kept of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from audiofuse.core.errors import QueryError
from audiofuse.core.feedback import book as module
from audiofuse.core.feedback.book import open_book
from audiofuse.core.items import point_id
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.main import cli
from audiofuse.workers.service.app import create_app
from audiofuse.workers.service.client import tell

KEYS = "ann:annannannannannann:search+feedback,kiosk:kioskkioskkioskkiosk:search"


@pytest.fixture
def settings(bucket: Path, tmp_path: Path) -> Settings:
    """Return settings of a service that keeps feedback."""
    return Settings(bucket=str(bucket), registry=str(tmp_path / "registry"), feedback=True)


@pytest.fixture
def client(searcher: Searcher, settings: Settings) -> TestClient:
    """Return who asks it."""
    return TestClient(create_app(searcher, settings))


@pytest.fixture
def gong(bucket: Path) -> str:
    """Return the id of an item."""
    return str(point_id(bucket.name, "music/gong.ogg"))


def test_what_is_said_is_kept_with_what_it_speaks_of(
    client: TestClient, settings: Settings, gong: str, version: Path
) -> None:
    """A verdict holds the question, the item as it was, the version that found it, and by whom."""
    body = {"q": "a gong", "verdicts": [{"item": gong, "opinion": "sought"}]}
    answer = client.post("/v1/feedback", json=body)
    assert answer.json() == {"kept": 1}
    (verdict,) = open_book(settings).read()
    assert (verdict.text, verdict.opinion, verdict.caller) == ("a gong", "sought", "")
    assert (verdict.item, verdict.key, verdict.encoder) == (gong, "music/gong.ogg", version.name)
    assert verdict.etag


def test_nothing_is_kept_unless_the_owner_wants_it(
    searcher: Searcher, settings: Settings, gong: str
) -> None:
    """Without the setting the route refuses, says what switches it on, and writes nothing."""
    client = TestClient(create_app(searcher, settings.model_copy(update={"feedback": False})))
    body = {"q": "a gong", "verdicts": [{"item": gong, "opinion": "fits"}]}
    answer = client.post("/v1/feedback", json=body)
    assert answer.status_code == 404
    assert "AUDIOFUSE_FEEDBACK" in answer.json()["detail"]
    assert list(open_book(settings).read()) == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"q": "", "verdicts": [{"opinion": "fits"}]}, 422),
        ({"q": "a gong", "verdicts": []}, 422),
        ({"q": "a gong", "verdicts": [{"opinion": "loud"}]}, 422),
        (
            {"q": "a gong", "verdicts": [{"opinion": "fits", "item": str(point_id("no", "no"))}]},
            404,
        ),
        ({"q": "a gong", "verdicts": [{"opinion": "fits"}] * 101}, 422),
    ],
)
def test_what_cannot_be_meant_is_refused_whole(
    client: TestClient, settings: Settings, gong: str, body: dict[str, object], status: int
) -> None:
    """No words, no verdict, an unknown opinion or item, or too many: nothing of it is kept."""
    said = [{"item": gong} | each for each in body["verdicts"]]  # type: ignore[attr-defined]
    answer = client.post("/v1/feedback", json=body | {"verdicts": said})
    assert answer.status_code == status
    assert list(open_book(settings).read()) == []


def test_a_full_day_takes_no_more(
    client: TestClient, gong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the day's book is full whoever says more is told so."""
    monkeypatch.setattr(module.Book.__init__, "__defaults__", (10,))
    body = {"q": "a gong", "verdicts": [{"item": gong, "opinion": "fits"}]}
    answer = client.post("/v1/feedback", json=body)
    assert answer.status_code == 429
    assert "tomorrow" in answer.json()["detail"]


def test_only_the_scope_feedback_may_say_what_fits(
    searcher: Searcher, settings: Settings, gong: str
) -> None:
    """A key without the scope is refused; one with it is named in the verdict."""
    guarded = settings.model_copy(update={"api_keys": Settings(api_keys=KEYS).api_keys})
    client = TestClient(create_app(searcher, guarded))
    body = {"q": "a gong", "verdicts": [{"item": gong, "opinion": "misses"}]}
    for key, status in (("kiosk" * 4, 403), ("ann" * 6, 200)):
        headers = {"Authorization": f"Bearer {key}"}
        assert client.post("/v1/feedback", json=body, headers=headers).status_code == status
    assert [verdict.caller for verdict in open_book(settings).read()] == ["ann"]


def test_the_command_says_exports_and_erases(
    searcher: Searcher,
    settings: Settings,
    serving: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is said in the terminal is kept, printed as JSON lines, and forgotten when told to."""
    with serving(create_app(searcher, settings)) as url:  # type: ignore[attr-defined]
        for name, value in (("SEARCH_URL", url), ("BUCKET", settings.bucket)):
            monkeypatch.setenv(f"AUDIOFUSE_{name}", value)
        monkeypatch.setenv("AUDIOFUSE_REGISTRY", settings.registry)
        say = ["feedback", "say", "a gong", "--fits", "music/gong.ogg"]
        owl = ["--misses", "animals/owl.wav", "--withdraw", "animals/owl.wav"]
        said = CliRunner().invoke(cli, [*say, *owl])
        assert "3 verdicts are kept" in said.output, said.output
        with pytest.raises(QueryError, match="there is no item"):
            CliRunner().invoke(cli, ["feedback", "say", "a", "--fits", "x"], catch_exceptions=False)
    exported = CliRunner().invoke(cli, ["feedback", "export"])
    assert len(exported.output.splitlines()) == 3
    erased = CliRunner().invoke(cli, ["feedback", "erase", "--key", "music/gong.ogg", "--yes"])
    assert "1 verdicts are forgotten" in erased.output
    left = [(verdict.key, verdict.opinion) for verdict in open_book(settings).read()]
    assert left == [("animals/owl.wav", "misses"), ("animals/owl.wav", "withdrawn")]


def test_the_wrong_service_is_told_apart(
    searcher: Searcher, settings: Settings, serving: Callable[..., object], gong: str
) -> None:
    """A service that keeps no feedback is no failure to be tried again: it says what is missing."""
    silent = settings.model_copy(update={"feedback": False})
    with (
        serving(create_app(searcher, silent)) as url,  # type: ignore[attr-defined]
        pytest.raises(QueryError, match="AUDIOFUSE_FEEDBACK"),
    ):
        tell(url, {"q": "a", "verdicts": [{"item": gong, "opinion": "fits"}]})
