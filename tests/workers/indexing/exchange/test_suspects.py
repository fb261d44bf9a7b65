"""Who is suspected of a device's death, and for how long."""

import pytest

from audiofuse.core.errors import Rejected
from audiofuse.workers.indexing.exchange.suspects import MAX_DEATHS, STANDS_S, Suspects


def test_a_verdict_stands_for_a_while_and_for_one_sound() -> None:
    """Three deaths reject a sound, also when it is worked on again; later it is tried anew."""
    now = 0.0
    suspects = Suspects(lambda: now)
    for _ in range(MAX_DEATHS):
        suspects.died_of(["bad", "bad"])
    suspects.died_of(["beside"])
    assert suspects.is_one("beside")
    assert not suspects.is_one("another")
    now += STANDS_S / 2
    for _ in range(2):
        with pytest.raises(Rejected, match="3 times"):
            suspects.is_one("bad")
    now += STANDS_S / 2
    assert not suspects.is_one("bad")
    suspects.clear("beside")
    assert not suspects.is_one("beside")
