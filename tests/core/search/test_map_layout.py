"""Places on a plane: what is alike lies together, in a process apart."""

import numpy as np
import pytest

from audiofuse.core.encoder.embeddings import Floats
from audiofuse.core.errors import Unavailable
from audiofuse.core.search import layout
from audiofuse.core.search.layout import laid_out, principal, spread

GROUPS, EACH = 6, 20


def _vectors() -> Floats:
    """Return vectors of six groups in as many directions, one group after the other."""
    chance = np.random.default_rng(0)
    centres = np.repeat(np.eye(GROUPS, 64), EACH, axis=0)
    return (centres + chance.normal(scale=0.02, size=centres.shape)).astype(np.float32)


def _share_of_own(places: Floats) -> float:
    """Return how many of the nearest of each place belong to its own group."""
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    nearest = apart.argsort(axis=1)[:, 1:6] // EACH
    own = np.arange(GROUPS * EACH)[:, None] // EACH
    return float((nearest == own).mean())


def test_neighbours_stay_neighbours() -> None:
    """Six groups, that no two directions part, are parted on the plane; the same each time."""
    vectors = _vectors()
    places = laid_out(vectors)
    assert places.shape == (GROUPS * EACH, 2)
    assert _share_of_own(places) > 0.95
    assert np.array_equal(laid_out(vectors), places)


def test_the_widest_directions_come_first() -> None:
    """Along them vectors differ as much as they do at all, the first the most."""
    flat = np.array([[3, 0, 1], [-3, 0, 1], [0, 1, 1], [0, -1, 1]], np.float32)
    places = principal(flat, 2)
    assert np.allclose(np.abs(places), [[3, 0], [3, 0], [0, 1], [0, 1]], atol=1e-5)


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_few_are_laid_out_as_well(number: int) -> None:
    """None, one, and fewer than there are neighbours to have: all within the square."""
    places = spread(laid_out(np.eye(8, dtype=np.float32)[:number]))
    assert places.shape == (number, 2)
    assert np.isfinite(places).all()
    assert (np.abs(places) <= 1 + 1e-5).all()


def test_a_process_that_fails_or_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for it hears why, and does not wait for ever."""
    with monkeypatch.context() as patched:
        patched.setattr(layout, "LAYOUT_S", 0.01)
        with pytest.raises(Unavailable, match="timed out"):
            laid_out(_vectors())
    monkeypatch.setattr(layout, "MODULE", "audiofuse.nowhere")
    with pytest.raises(Unavailable, match="No module named"):
        laid_out(_vectors())
