"""Which windows make the next batch, and when: by a clock that stands still."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.encoder.accumulator import AudioAccumulator
from audiofuse.workers.indexing.device import measure
from audiofuse.workers.indexing.device.batches import (
    GROW,
    PATIENCE_BATCHES,
    PATIENCE_S,
    SHRINK,
    Batches,
)
from audiofuse.workers.indexing.device.measure import best_batch_s
from audiofuse.workers.indexing.device.waiting import Sound, Window
from audiofuse.workers.queue.lanes import BACKFILL_TURN
from audiofuse.workers.telemetry.names import Lane

LIVE, BACKFILL = Lane.LIVE, Lane.BACKFILL
SILENCE = np.zeros(1, np.float32)


def window(seconds: float = 10, lane: Lane = LIVE, since: float = 0.0) -> Window:
    """Return a window of so many seconds, padding included, that came at ``since``."""
    length = int(seconds * SAMPLE_RATE)
    return Window(Sound("", lane, AudioAccumulator(1)), 0, SILENCE, since, length)


def filled(*windows: Window, batch_s: float = 40) -> Batches:
    """Return batches in which these windows wait."""
    batches = Batches(batch_s)
    for each in windows:
        batches.add(each)
    return batches


def test_a_batch_that_is_not_full_waits() -> None:
    """While more may come and nobody has waited long, nothing begins; the wait left is told."""
    batches = filled(window(), window(since=0.01))
    assert batches.choose(0.02, nothing_more_comes=False) == []
    assert batches.patience_left_s(0.02) == pytest.approx(PATIENCE_S[LIVE] - 0.02)
    assert len(batches) == 2


def test_a_full_batch_begins() -> None:
    """As soon as another window would not fit a batch begins, and the rest waits on."""
    windows = [window() for _ in range(5)]
    batches = filled(*windows)
    assert batches.choose(0, nothing_more_comes=False) == windows[:4]
    assert batches.choose(0, nothing_more_comes=False) == []


def test_a_full_batch_has_one_of_few_sizes() -> None:
    """Where an encoder would pad it, a batch is full at the size that needs no padding."""
    batches = Batches(40, few_shapes=True)
    windows = [window(seconds=6) for _ in range(5)]  # 6 have room
    for each in windows:
        batches.add(each)
    assert batches.room(6 * SAMPLE_RATE) == 6
    assert batches.room(8 * SAMPLE_RATE) == 4
    assert batches.choose(0, nothing_more_comes=False) == []
    batches.add(window(seconds=6))
    assert len(batches.choose(0, nothing_more_comes=False)) == 6


def test_a_batch_begins_when_nothing_more_comes() -> None:
    """Then there is nothing to wait for."""
    assert len(filled(window()).choose(0, nothing_more_comes=True)) == 1


def test_a_batch_begins_when_its_oldest_window_has_waited_enough() -> None:
    """Live windows wait for less time than those of the backfill lane."""
    live, backfill = filled(window()), filled(window(lane=BACKFILL))
    later = PATIENCE_S[LIVE]
    assert live.choose(later, nothing_more_comes=False)
    assert not backfill.choose(later, nothing_more_comes=False)
    assert backfill.choose(PATIENCE_S[BACKFILL], nothing_more_comes=False)


def test_under_load_windows_wait_as_long_as_batches_take() -> None:
    """Where batches take long a window waits for that, so that full ones go first."""
    batches = filled(window())
    batches.took(1.0)
    assert not batches.choose(PATIENCE_BATCHES - 0.1, nothing_more_comes=False)
    assert batches.choose(PATIENCE_BATCHES, nothing_more_comes=False)


def test_a_batch_has_one_padded_length() -> None:
    """Windows of another length stay, however much room there is."""
    short, long = window(5), window(10)
    batches = filled(short, long)
    assert batches.choose(9, nothing_more_comes=False) == [short]
    assert batches.choose(9, nothing_more_comes=False) == [long]


def test_backfill_fills_the_room_that_live_leaves() -> None:
    """Live windows go first though they came later; the rest of the batch is backfill's."""
    back = [window(lane=BACKFILL) for _ in range(4)]
    live = [window(since=0.01) for _ in range(2)]
    assert filled(*back, *live).choose(0.02, nothing_more_comes=False) == [*live, *back[:2]]


def test_backfill_has_its_turn() -> None:
    """However much live audio waits, one batch of so many begins with backfill."""
    batches = Batches(10)
    for _ in range(2 * BACKFILL_TURN):
        batches.add(window())
    for _ in range(2):
        batches.add(window(lane=BACKFILL))
    lanes = [batches.choose(0, nothing_more_comes=True)[0].lane for _ in range(2 * BACKFILL_TURN)]
    assert [n + 1 for n, lane in enumerate(lanes) if lane is BACKFILL] == [
        BACKFILL_TURN, 2 * BACKFILL_TURN,
    ]  # fmt: skip


def test_the_bound_shrinks_and_grows() -> None:
    """After memory did not suffice batches are smaller, never below a window, and grow again."""
    batches = Batches(40)
    batches.shrink()
    assert batches.bound_s == 40 * SHRINK
    assert batches.room(10 * SAMPLE_RATE) == 3
    batches.grow()
    assert batches.bound_s == pytest.approx(40 * SHRINK * GROW)
    for _ in range(100):
        batches.grow()
    assert batches.bound_s == 40
    for _ in range(100):
        batches.shrink()
    assert batches.room(10 * SAMPLE_RATE) == 1


class Paced:
    """An encoder that takes a set time for each size of batch, and longer now and then."""

    device = "cpu"
    seconds: ClassVar = {1: 0.01, 2: 0.012, 4: 0.016, 8: 0.036, 16: 0.08}

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.now = 0.0  # by a clock of its own

    def encode_windows(self, windows: Sequence[Samples]) -> None:
        """Let that time pass."""
        self.sizes.append(len(windows))
        disturbed = len(windows) == 4 and self.sizes.count(4) < 3
        self.now += self.seconds[len(windows)] + 0.1 * disturbed


def test_the_smallest_batch_that_is_nearly_as_fast_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither a larger batch that gains nothing nor a busy moment of the machine decides."""
    paced = Paced()
    monkeypatch.setattr(measure, "time", SimpleNamespace(monotonic=lambda: paced.now))
    assert best_batch_s(paced) == 40  # type: ignore[arg-type]
    assert max(paced.sizes) == 16
