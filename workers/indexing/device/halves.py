"""Working on many things at once, so that one which cannot be done costs the others nothing."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from audiofuse.core.encoder.runtime import DeviceLost, OutOfMemory
from audiofuse.core.errors import Reason, Rejected
from audiofuse.workers.indexing.device.waiting import Sound, Window
from audiofuse.workers.telemetry import metrics
from audiofuse.workers.telemetry.metrics import Split, Stage

Waiting = TypeVar("Waiting", Sound, Window)


def by_halves(
    stage: Stage,
    work: Callable[[list[Waiting]], None],
    things: list[Waiting],
    out_of_memory: Callable[[], None],
) -> None:
    """Work on all at once; if that fails on each half, so that a bad one fails alone."""
    error = _error_of(work, things)
    if error is None:
        return
    if isinstance(error, DeviceLost):
        raise error  # no later batch would fare better
    if isinstance(error, OutOfMemory):
        out_of_memory()
    if len(things) > 1:
        metrics.BATCH_SPLITS.labels(_why_split(error)).inc()
        middle = len(things) // 2
        by_halves(stage, work, things[:middle], out_of_memory)
        by_halves(stage, work, things[middle:], out_of_memory)
    elif isinstance(error, OutOfMemory):
        detail = f"it does not fit the device: {error}"
        _sound(things[0]).fail(stage, Rejected(Reason.NO_MEMORY, detail))
    else:
        _sound(things[0]).fail(stage, error)


def _sound(thing: Sound | Window) -> Sound:
    return thing.sound if isinstance(thing, Window) else thing


def _error_of(work: Callable[[list[Waiting]], None], things: list[Waiting]) -> Exception | None:
    """Work; return what went wrong, without the frames that hold the batch's memory.

    What is worked on is marked, should this process end here.
    """
    sounds = [_sound(thing) for thing in things]
    _mark(sounds, in_work=True)
    try:
        work(things)
    except Exception as error:  # noqa: BLE001 - its class decides what becomes of the batch
        return error.with_traceback(None)
    finally:
        _mark(sounds, in_work=False)
    return None


def _mark(sounds: Sequence[Sound], *, in_work: bool) -> None:
    for sound in sounds:
        sound.mark(in_work)


def _why_split(error: Exception) -> Split:
    return Split.OUT_OF_MEMORY if isinstance(error, OutOfMemory) else Split.ERROR
