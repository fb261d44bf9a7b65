"""Homes of local deployments: which of them a command means that is told none."""

from pathlib import Path

import pytest

from audiofuse.core.homes import (
    DEPLOYMENT_FILE,
    default_home,
    deployment_file,
    forget_elsewhere,
    running_elsewhere,
    tell_elsewhere,
)


@pytest.fixture(autouse=True)
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the default home, which nothing has written to."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return default_home()


def _running(home: Path) -> Path:
    home.mkdir(parents=True, exist_ok=True)
    (home / DEPLOYMENT_FILE).touch()
    tell_elsewhere(home)
    return home


def test_the_only_one_that_runs_is_meant(tmp_path: Path, default: Path) -> None:
    """One elsewhere is found; that of the default home comes first; a home that is named wins."""
    other = _running(tmp_path / "other")
    assert deployment_file(None) == other / DEPLOYMENT_FILE
    assert deployment_file("/somewhere") == Path("/somewhere") / DEPLOYMENT_FILE
    _running(default)
    assert deployment_file(None) == default / DEPLOYMENT_FILE
    assert running_elsewhere() == [other]


def test_of_several_none_is_guessed(tmp_path: Path, default: Path) -> None:
    """Two elsewhere are both known, and neither is taken for the one that is meant."""
    homes = [_running(tmp_path / name) for name in ("a", "b")]
    assert running_elsewhere() == homes
    assert deployment_file(None) == default / DEPLOYMENT_FILE


def test_what_has_ended_is_not_found(tmp_path: Path) -> None:
    """Neither one that said so, nor one that was killed and whose folder is gone."""
    ended, killed = _running(tmp_path / "ended"), _running(tmp_path / "killed")
    forget_elsewhere(ended)
    (killed / DEPLOYMENT_FILE).unlink()
    killed.rmdir()
    assert running_elsewhere() == []
    tell_elsewhere(_running(killed))  # it is started anew
    assert running_elsewhere() == [killed]


def test_a_default_home_that_cannot_be_written_is_no_error(tmp_path: Path, default: Path) -> None:
    """A deployment starts and ends all the same; only nobody is told of it."""
    default.parent.mkdir()
    default.write_text("a file")
    tell_elsewhere(tmp_path)
    forget_elsewhere(tmp_path)
    assert running_elsewhere() == []
