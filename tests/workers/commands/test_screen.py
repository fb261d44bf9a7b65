"""Tables fit the terminal, whatever keys are called; in a pipe nothing is cut or coloured."""

import io
import os
from typing import Any

import pytest
from rich.cells import cell_len

from audiofuse.workers.commands.terminal.display import hits_table
from audiofuse.workers.commands.terminal.screen import OneLine, Screen, shortened

LONG = "field recordings/2026/a very long folder name/and another/take 0042 of the rooster.wav"


def _shown(*keys: str, width: int | None = None, terminal: bool = False) -> str:
    file = io.StringIO()
    screen = Screen(file=file, width=width, force_terminal=terminal, _environ={})
    screen.print(hits_table("a rooster", [_hit(key) for key in keys]))
    return file.getvalue()


def _hit(key: str) -> dict[str, Any]:
    payload = {
        "has_text": "yes", "title": "Rooster", "keywords": [], "labels": [], "duration_s": 75.2,
    }  # fmt: skip
    return {"key": key, "score": 0.6, "audio": 0.4, "metadata": 0.2, "payload": payload}


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120])
def test_a_hit_has_one_line_on_a_terminal(width: int) -> None:
    """The path lacks its middle and keeps its name's end; the length is there, and all fits."""
    lines = _shown(LONG, width=width, terminal=True).splitlines()
    hits = [line for line in lines if "0.600" in line]
    assert len(hits) == 1
    assert ("rooster.wav" if width > 60 else ".wav") in hits[0]
    assert "1:15" in hits[0]
    assert all(cell_len(line) <= width for line in lines if "\x1b" not in line)


def test_a_pipe_gets_whole_paths_without_colours() -> None:
    """What a program reads is complete."""
    shown = _shown(LONG)
    assert LONG in shown
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) < 200


@pytest.mark.parametrize("key", ["a\nb.wav", "a\x1b[2Jb.wav", "録音" * 40 + ".wav", "x" * 300])
def test_a_key_cannot_leave_its_line(key: str) -> None:
    """Control characters, wide ones, and names without end are shown within it."""
    lines = [line for line in _shown(key, width=80).splitlines() if "0.600" in line]
    assert len(lines) == 1
    assert cell_len(lines[0]) <= 80
    assert "\x1b" not in lines[0]


@pytest.mark.parametrize("width", range(12))
def test_what_is_shortened_fits_any_width(width: int) -> None:
    """Down to nothing; what fits is left as it is."""
    assert cell_len(shortened(LONG, width)) <= max(1, width)
    assert cell_len(shortened("録音録音録音", width)) <= max(1, width)
    assert shortened("rain.wav", 8) == "rain.wav"
    assert shortened("field/rain.wav", 10) == "fie…in.wav"


def test_columns_are_obeyed_in_a_pipe() -> None:
    """Whoever sets COLUMNS wants that width, terminal or not."""
    file = io.StringIO()
    screen = Screen(file=file, _environ=os.environ | {"COLUMNS": "40"})
    screen.print(OneLine(LONG))
    assert cell_len(file.getvalue().rstrip("\n")) <= 40
