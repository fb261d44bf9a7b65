"""Manifests of queries with times."""

import json
from pathlib import Path

import pytest

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.timed import Span, read_timed


def _manifest(folder: Path, *rows: object) -> Path:
    path = folder / "moments.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_manifest_has_queries_and_recordings(tmp_path: Path) -> None:
    """Recordings that only queries name are there, too; a row gives one its words."""
    path = _manifest(
        tmp_path,
        {"text": "a dog", "relevant": [["b.wav", 1, 2.5], ["a.wav", 0, 1]]},
        {"audio": "a.wav", "title": "rain"},
        {"text": "a cat", "identity": "cat", "relevant": [["b.wav", 3, 4]]},
    )
    timed = read_timed(path)
    assert {name: clip.metadata.text for name, clip in timed.recordings.items()} == {
        "b.wav": "",
        "a.wav": "rain",
    }
    assert timed.recordings["b.wav"].path == tmp_path / "b.wav"
    assert [query.identity for query in timed.queries] == ["b.wav", "cat"]
    assert timed.queries[0].relevant == (Span("b.wav", 1, 2.5), Span("a.wav", 0, 1))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a dog", "relevant": []}, 'line 2: field "relevant"'),
        ({"text": "a dog", "relevant": [["a.wav", 2, 1]]}, "line 2.*2 to 1 s is no part"),
        ({"relevant": [["a.wav", 1, 2]]}, 'line 2: field "text"'),
        ({"title": "no sound"}, "line 2.*audio"),
        (["a"], "line 2"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: object, message: str) -> None:
    """What is wrong is told with its line and field."""
    with pytest.raises(ConfigurationError, match=message):
        read_timed(_manifest(tmp_path, {"audio": "a.wav"}, row))


def test_a_manifest_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A wrong path is one clear error."""
    with pytest.raises(ConfigurationError, match=r"cannot read the manifest .*none\.jsonl"):
        read_timed(tmp_path / "none.jsonl")
