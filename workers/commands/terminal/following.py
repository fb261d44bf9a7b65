"""What ``audiofuse up`` tells: a bar until the index is in step, then a line for each change."""

import time
from collections.abc import Iterator
from contextlib import suppress

from rich.console import Console
from rich.progress import TextColumn

from audiofuse.workers.commands.terminal.display import Bars
from audiofuse.workers.deployment.progress import (
    AWAY,
    MOST_CHANGES,
    Changes,
    Follower,
    Progress,
)

PLAIN_S = 10.0  # between two lines about progress where no bar can be drawn


def told(follower: Follower, console: Console) -> Iterator[None]:
    """Tell how the index comes into step with its bucket, and then what changes, for ever.

    Comes up for air after each look. What does not answer is asked again the next time.
    """
    steps = _drawn if console.is_terminal else _written
    yield from steps(_looks(follower), console)
    with suppress(*AWAY):
        follower.changes()  # what was indexed up to now is told already
    while True:
        yield
        with suppress(*AWAY):
            for line in _lines(follower.changes()):
                console.print(
                    f"{time.strftime('%H:%M:%S')}  {line}",
                    markup=False, highlight=False, soft_wrap=True,
                )  # fmt: skip


def _looks(follower: Follower) -> Iterator[Progress | None]:
    """Look until the index is in step, at two looks in a row: keys may be on their way."""
    in_step = 0
    while in_step < 2:  # noqa: PLR2004 - as it says
        seen = None
        with suppress(*AWAY):
            seen = follower.progress()
            in_step = in_step + 1 if seen.is_in_step else 0
        yield seen


def _drawn(looks: Iterator[Progress | None], console: Console) -> Iterator[None]:
    last = None
    with Bars(TextColumn("{task.fields[rejected]}"), console=console) as bars:
        task = bars.add_task("looking through the bucket", total=None, rejected="")
        for seen in looks:
            if seen and seen.total is not None:
                if last is None:  # what was done before says nothing about the pace
                    bars.reset(task, total=seen.total, completed=seen.done, description="indexing")
                rejected = f"{seen.rejected} rejected" if seen.rejected else ""
                bars.update(
                    task, completed=seen.done, total=seen.total, rejected=rejected, refresh=True
                )
                last = seen
            yield
        bars.remove_task(task)
    if last:
        console.print(_summary(last), highlight=False, soft_wrap=True)


def _written(looks: Iterator[Progress | None], console: Console) -> Iterator[None]:
    first, last, written = None, None, 0.0
    for seen in looks:
        now = time.monotonic()
        if seen and seen.total is not None:
            first, last = first or (now, seen.done), seen
            if now - written > PLAIN_S and not seen.is_in_step:
                written = now
                pace = (seen.done - first[1]) / (now - first[0]) if now > first[0] else 0.0
                console.print(_step(seen, pace), highlight=False, soft_wrap=True)
        yield
    if last:
        console.print(_summary(last), highlight=False, soft_wrap=True)


def _step(seen: Progress, per_s: float) -> str:
    total = seen.total or 0
    left = f", {per_s:.1f}/s, {(total - seen.done) / per_s:.0f} s left" if per_s else ""
    return f"indexed {seen.indexed:,} of {total:,}, {seen.rejected:,} rejected{left}"


def _summary(last: Progress) -> str:
    rejected = f"; {last.rejected:,} rejected: audiofuse dead list" if last.rejected else ""
    return f"in step with the bucket: {last.indexed:,} sounds are indexed{rejected}"


def _lines(changes: Changes) -> Iterator[str]:
    if len(changes.indexed) >= MOST_CHANGES:
        yield f"indexed   {MOST_CHANGES} sounds or more, at last {changes.indexed[-1]}"
    else:
        yield from (f"indexed   {key}" for key in changes.indexed)
    if len(changes.rejected) >= MOST_CHANGES:
        yield f"rejected  {MOST_CHANGES} objects or more: audiofuse dead list"
    else:
        for letter in changes.rejected:
            yield f"rejected  {letter.key}: {letter.reason}, {letter.detail}"
    if changes.fewer:
        yield f"removed   {changes.fewer:,} sound{'s' if changes.fewer > 1 else ''}"
