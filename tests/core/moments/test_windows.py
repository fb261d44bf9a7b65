"""The windows that moments are made of."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.windows import Window, WindowCutter, grid_in_force
from audiofuse.core.settings import Settings

STEPS = 40  # of a whole window of 10 s: four a second


def _cut(grid: Grid, seconds: float, silence_s: float = 0.0) -> Iterator[Window]:
    """Cut a recording whose frame ``i`` holds ``i``; silence behind it is heard as well."""
    cutter = WindowCutter(grid, keeps_frames=False)
    number = 0
    samples = round(seconds * SAMPLE_RATE)
    for start in range(0, samples, WINDOW_SAMPLES):
        size = min(WINDOW_SAMPLES, samples - start)
        heard = size if size == WINDOW_SAMPLES else size + round(silence_s * SAMPLE_RATE)
        count = -(-STEPS * heard // WINDOW_SAMPLES)
        yield from cutter.add(size, heard, np.arange(number, number + count, dtype="f4")[:, None])
        number += count
    yield from cutter.finish()


@pytest.mark.parametrize(
    ("grid", "seconds", "spans"),
    [
        (Grid(), 20, [(0, 5), (5, 10), (10, 15), (15, 20)]),
        (Grid(), 23, [(0, 5), (5, 10), (10, 15), (15, 20), (20, 23)]),
        (Grid(), 22, [(0, 5), (5, 10), (10, 15), (15, 22)]),  # a rest of less than half a hop
        (Grid(10, 5), 22, [(0, 10), (5, 15), (10, 22)]),
        (Grid(15, 15), 40, [(0, 15), (15, 30), (30, 40)]),  # longer than what is heard at once
        (Grid(3, 2), 8, [(0, 3), (2, 5), (4, 7), (6, 8)]),
        (Grid(), 5, []),  # one window or less has no moments
        (Grid(), 7, []),
        (Grid(), 0.2, []),
    ],
)
def test_windows_cover_the_recording(
    grid: Grid, seconds: float, spans: list[tuple[float, float]]
) -> None:
    """Windows come every hop, and the last one ends where the recording ends."""
    assert [(each.start_s, each.end_s) for each in _cut(grid, seconds)] == spans


def test_a_window_is_the_mean_of_its_own_frames() -> None:
    """Each window pools the frames of its seconds, across the border of what was heard at once."""
    found = [float(each.audio.pooled[0, 0]) for each in _cut(Grid(4, 4), 20)]
    assert found == [np.arange(start, start + 16).mean() for start in range(0, 80, 16)]


def test_the_silence_behind_belongs_to_the_last_window() -> None:
    """What is heard after the end makes no window, but counts where it does in an item."""
    first, last = list(_cut(Grid(), 8, silence_s=1))
    assert (last.start_s, last.end_s) == (5, 8)
    assert float(first.audio.pooled[0, 0]) == np.arange(20).mean()
    assert float(last.audio.pooled[0, 0]) == np.arange(20, 36).mean()


def test_a_long_recording_waits_in_little_memory() -> None:
    """After an hour no more frames wait than those of two windows and of what comes at once."""
    cutter = WindowCutter(Grid(), keeps_frames=False)
    frames = np.zeros((STEPS, 1), np.float32)
    cut = sum(len(list(cutter.add(WINDOW_SAMPLES, WINDOW_SAMPLES, frames))) for _ in range(360))
    assert cut == 719  # all but the last, which waits for the end
    assert cutter._frames is not None
    assert len(cutter._frames) <= 2 * STEPS


@pytest.mark.parametrize(("window_s", "hop_s"), [(0.5, 0.5), (61, 5), (5, 6), (5, 0)])
def test_lengths_that_make_no_windows_are_refused(window_s: float, hop_s: float) -> None:
    """Windows that are too short, too long or leave gaps are named."""
    with pytest.raises(ConfigurationError, match=f"{window_s:g} s" if hop_s == window_s else " s"):
        Grid(window_s, hop_s)


@pytest.mark.parametrize("grid", [Grid(), Grid(10, 5), Grid(15, 15), Grid(3, 2), Grid(4.7, 3.3)])
def test_how_many_windows_follows_from_the_duration(grid: Grid) -> None:
    """As a point has it, to the millisecond, also where a rest is about half a hop."""
    edges = [grid.window_s + grid.hop_s * (number + 0.5) for number in range(4)]
    for seconds in (0.1, 9.99, 61.3, *edges, *(edge - 0.0001 for edge in edges)):
        samples = round(seconds * SAMPLE_RATE)
        cut = list(_cut(grid, samples / SAMPLE_RATE))
        assert len(cut) == grid.count(round(samples / SAMPLE_RATE, 3))


@pytest.mark.parametrize(
    ("setting", "grid"),
    [
        ({}, Grid(4, 2)),
        ({"moment_window_s": 20}, Grid(20, 20)),
        ({"moments": "off"}, None),
        ({"moments": "off", "moment_window_s": 20}, None),
    ],
)
def test_settings_say_whether_and_how_recordings_are_cut(
    setting: dict[str, Any], grid: Grid | None
) -> None:
    """As the encoder says, in longer windows, or not at all; and never where nothing is heard."""
    assert grid_in_force(Settings(**setting), Grid(4, 2)) == grid
    assert grid_in_force(Settings(**setting), None) is None
