"""How probable hits are, as the service, the programs and the terminal tell it."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.model.relevance import Curve, Relevance
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.main import cli
from audiofuse.workers.programs.client import Client
from audiofuse.workers.service.app import create_app

HALF = Relevance(
    worded=Curve(slope=0, offset=0), wordless=Curve(slope=0, offset=-3), nothing_below=0.9
)
Problem = Callable[[httpx.Response, int, str], str]


@pytest.fixture
def _calibrated(tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the service's encoder a calibration."""
    monkeypatch.setattr(tiny_encoder, "config", tiny_encoder.with_relevance(HALF).config)


@pytest.mark.usefixtures("_calibrated")
def test_hits_tell_it_and_are_chosen_by_it(client: TestClient) -> None:
    """Sounds with words are as probable as not here; those without are not, and are left out."""
    asked = {"q": "a gong"}
    found = client.get("/v1/search", params=asked).json()
    assert found["nothing"] is True
    assert {hit["relevance"] == 0.5 for hit in found["hits"]} == {True, False}
    answer = client.post("/v1/search", json=asked | {"min_relevance": 0.5}).json()
    assert {hit["relevance"] for hit in answer["hits"]} == {0.5}
    assert len(answer["hits"]) == 2


def test_where_it_is_not_known_that_is_said(client: TestClient, problem: Problem) -> None:
    """Without a calibration it is null, and to choose by it is refused with the reason."""
    found = client.get("/v1/search", params={"q": "a gong"}).json()
    assert found["nothing"] is None
    assert {hit["relevance"] for hit in found["hits"]} == {None}
    refused = client.get("/v1/search", params={"q": "a gong", "min_relevance": 0.5})
    assert "calibration" in problem(refused, 422, "bad-question")
    by_sound = client.post("/v1/search/sound?min_relevance=0.5", content=b"RIFF")
    assert "words alone" in problem(by_sound, 422, "bad-question")


@pytest.mark.usefixtures("_calibrated")
def test_programs_and_the_terminal_tell_it(
    searcher: Searcher,
    bucket: Path,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client's sounds, a notebook's table, the command's column, sentence and JSON."""
    with serving(create_app(searcher, Settings(bucket=str(bucket)))) as url:
        with Client(url) as asking:
            sounds = asking.search("a gong", min_relevance=0.5)
        monkeypatch.setenv("AUDIOFUSE_SEARCH_URL", url)
        shown = CliRunner().invoke(cli, ["search", "a gong", "--min-relevance", "0.5"])
        told = CliRunner().invoke(cli, ["search", "a gong", "--json"])
    assert [sound.relevance for sound in sounds] == [0.5, 0.5]
    assert sounds.nothing
    assert "the nearest are" in sounds._repr_html_()
    assert "nothing here sounds like that; the nearest are" in shown.output
    assert shown.output.count("50%") == 2
    assert json.loads(told.output)["nothing"] is True
