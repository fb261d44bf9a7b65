"""From windows' scores to moments."""

import numpy as np
import pytest

from audiofuse.core.moments.moments import Moment, Spans, best_moments


def _spans(count: int, window_s: float = 5.0, hop_s: float = 5.0) -> Spans:
    starts = np.arange(count) * hop_s
    return np.stack([starts, starts + window_s], axis=1)


def _moments(*scores: float, slack: float = 0.1, hop_s: float = 5.0) -> list[tuple[float, float]]:
    spans = _spans(len(scores), hop_s=hop_s)
    found = best_moments(spans, np.array(scores, np.float32), slack=slack)
    return [(each.start_s, each.end_s) for each in found]


def test_neighbours_that_fit_are_one_moment() -> None:
    """The best window and its run of nearly as good ones is the first moment, with its score."""
    scores = np.array([0.1, 0.75, 0.8, 0.72, 0.2, 0.75], np.float32)
    first, second, third = best_moments(_spans(6), scores, slack=0.1)
    assert first == Moment(5.0, 20.0, pytest.approx(0.8))
    assert second == Moment(25.0, 30.0, pytest.approx(0.75))
    assert (third.start_s, third.end_s) == (20.0, 25.0)  # not the 0.1 at the beginning


def test_there_are_at_most_three_moments_best_first() -> None:
    """Of five separate events the three best are named, in the order of their scores."""
    found = _moments(0.5, 0, 0.9, 0, 0.7, 0, 0.6, 0, 0.8)
    assert found == [(10, 15), (40, 45), (20, 25)]


def test_a_sound_that_is_heard_all_along_is_one_moment() -> None:
    """Where every window is as good as the best, the moment is the recording."""
    assert _moments(0.5, 0.45, 0.5, 0.48) == [(0, 20)]


def test_moments_of_overlapping_windows_do_not_overlap() -> None:
    """With a hop of half a window a moment takes what it overlaps from the others."""
    found = _moments(0.9, 0.1, 0.6, 0.2, 0.5, hop_s=2.5)
    assert found == [(0, 5), (5, 10), (10, 15)]


def test_windows_that_are_not_given_end_a_moment() -> None:
    """Of some of the windows, as a search returns the best, only true neighbours are joined."""
    spans = _spans(10)[[2, 3, 5]]
    found = best_moments(spans, np.array([0.8, 0.8, 0.8], np.float32), slack=0.02)
    assert [(each.start_s, each.end_s) for each in found] == [(10, 20), (25, 30)]


def test_a_recording_without_windows_has_no_moment() -> None:
    """Nothing is named where nothing was scored."""
    assert best_moments(_spans(0), np.zeros(0, np.float32), slack=0.02) == []
