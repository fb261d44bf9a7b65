"""The command ``audiofuse search`` against a running service."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from click.testing import Result
from fastapi import FastAPI
from pydantic import SecretStr
from typer.testing import CliRunner

from audiofuse.core.errors import ConfigurationError, QueryError
from audiofuse.core.search.search import Searcher
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.main import cli
from audiofuse.workers.service.app import create_app

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
ALL, WORDS = "all-of-it-0123456789", "words-only-0123456789"
API_KEYS = SecretStr(f"all:{ALL}, words:{WORDS}:search")


@pytest.fixture
def run(
    searcher: Searcher, bucket: Path, monkeypatch: pytest.MonkeyPatch,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> Iterator[Callable[..., Result]]:  # fmt: skip
    """Return what runs ``audiofuse search`` against a service that needs a key."""
    monkeypatch.setenv("AUDIOFUSE_BUCKET", str(bucket))
    monkeypatch.setenv("AUDIOFUSE_SEARCH_KEY", ALL)
    with serving(create_app(searcher, Settings(bucket=str(bucket), api_keys=API_KEYS))) as url:
        monkeypatch.setenv("AUDIOFUSE_SEARCH_URL", f"http://127.0.0.1:9, {url}")
        yield lambda *words: CliRunner().invoke(cli, ["search", *words], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a gong", "--keyword", "gong", "--keyword", "metal"], ["music/gong.ogg"]),
        (["a gong", "--label", "Gong", "--with-text", "--since", "2020-01-01"], ["music/gong.ogg"]),
        (["a gong", "--without-text", "--prefix", "music/"], ["music/cowbell.flac"]),
        (["a gong", "--until", "2020-01-01"], []),
        (["a gong", "--min-duration", "1000"], []),
        (["--sound", str(SOUNDS / "animals/owl.wav"), "--limit", "1"], ["animals/owl.wav"]),
        (["--sound", str(SOUNDS / "animals/owl.wav"), "--offset", "4"], []),
    ],
)
def test_the_command_asks_as_it_is_told(
    run: Callable[..., Result], words: list[str], expected: list[str]
) -> None:
    """Each option reaches the first service that answers, which has the last word."""
    found = json.loads(run(*words, "--json").stdout)
    assert [hit["key"] for hit in found["hits"]] == expected
    table = run(*words).stdout
    assert all(key in table for key in expected)
    assert ("nothing is found" in table) == (not expected)


def test_the_command_finds_what_is_like_a_key(run: Callable[..., Result]) -> None:
    """An item is named by its key, takes words and a balance besides, and is not found itself."""
    words = ["a gong", "--like", "music/gong.ogg", "--balance", "0.3", "--without", "piano"]
    keys = [hit["key"] for hit in json.loads(run(*words, "--unique", "--json").stdout)["hits"]]
    assert sorted(keys) == ["animals/owl.wav", "music/cowbell.flac", "music/piano.wav"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no words"),
        (["--like", "nothing.wav"], "no item"),
        (["--sound", "/does/not/exist.wav"], "/does/not/exist.wav"),
        (["--sound", __file__], "no decoder"),
        (["--sound", __file__, "--like", "x.wav"], "exclude each other"),
        (["a", "--limit", "1000", "--offset", "9999"], "10000"),
    ],
)
def test_the_command_says_why_it_is_refused(
    run: Callable[..., Result], words: list[str], told: str
) -> None:
    """What the service refuses is told in its words."""
    refused = run(*words).exception
    assert isinstance(refused, QueryError)
    assert told in str(refused)


def test_a_wrong_key_names_its_setting(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its key the command says which setting is wrong."""
    monkeypatch.setenv("AUDIOFUSE_SEARCH_KEY", "another-key-0123456789")
    refused = run("a gong").exception
    assert isinstance(refused, ConfigurationError)
    assert "AUDIOFUSE_SEARCH_KEY" in str(refused)
    assert "another-key" not in str(refused)
