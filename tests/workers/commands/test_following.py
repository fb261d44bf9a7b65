"""What ``audiofuse up`` tells while it runs, on a terminal and elsewhere."""

import io
from collections.abc import Iterable

import pytest
from redis import ConnectionError as RedisAway
from rich.console import Console

from audiofuse.core.errors import Reason
from audiofuse.workers.commands.terminal import following
from audiofuse.workers.deployment.progress import MOST_CHANGES, Changes, Progress
from audiofuse.workers.queue.dead_letters import DeadLetter

LOOKING = Progress(None, 0, 0, 0)
HALF = Progress(sounds=1319, indexed=600, rejected=4, waiting=715)
DONE = Progress(sounds=1319, indexed=1315, rejected=4, waiting=0)
NOTHING = Changes([], [], 0)
LETTER = DeadLetter("x.wav", Reason.SILENT, "nothing is in it", "etag", "late-aaa", 1.0, 1)


class _Follower:
    """Says what it is told to say, one thing after the other; an error is raised."""

    def __init__(self, progress: Iterable[object], changes: Iterable[object] = ()) -> None:
        self._progress = iter(progress)
        self._changes = iter([NOTHING, *changes])

    def progress(self) -> Progress:
        return self._said(next(self._progress))

    def changes(self) -> Changes:
        return self._said(next(self._changes, NOTHING))

    def _said(self, what: object):  # type: ignore[no-untyped-def]  # noqa: ANN202
        if isinstance(what, Exception):
            raise what
        return what


def _told(follower: _Follower, looks: int, *, is_terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=100)
    steps = following.told(follower, console)  # type: ignore[arg-type]
    for _ in range(looks):
        next(steps)
    steps.close()
    return file.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_way_into_step_is_told(is_terminal: bool) -> None:  # noqa: FBT001 - a case
    """How far it is while it is on its way, what was rejected, and that it is there."""
    away = RedisAway("not now")
    said = _told(
        _Follower([LOOKING, away, HALF, DONE, HALF, DONE, DONE]), 8, is_terminal=is_terminal
    )
    assert "in step with the bucket: 1,315 sounds are indexed; 4 rejected: audiofuse dead l" in said
    assert said.count("in step") == 1
    if is_terminal:
        assert "looking through the bucket" in said
        assert "604/1319" in said
    else:
        assert "indexed 600 of 1,319, 4 rejected" in said
        assert "\x1b" not in said


def test_changes_are_a_line_each() -> None:
    """What is indexed, rejected or gone has its line, and what is away costs a look only."""
    many = Changes([f"{number}.wav" for number in range(MOST_CHANGES)], [], 0)
    changes = [
        Changes(["a [b].wav"], [LETTER], 0), RedisAway("not now"), Changes([], [], 1),
        Changes([], [], 1200), many,
    ]  # fmt: skip
    said = [line[10:] for line in _told(_Follower([DONE, DONE], changes), 8).splitlines()[1:]]
    assert said == [
        "indexed   a [b].wav",
        "rejected  x.wav: silent, nothing is in it",
        "removed   1 sound",
        "removed   1,200 sounds",
        "indexed   20 sounds or more, at last 19.wav",
    ]
