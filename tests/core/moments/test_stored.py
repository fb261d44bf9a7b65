"""What an item's point says of its moments."""

from typing import Any

import pytest

from audiofuse.core.model.config import Grid
from audiofuse.core.moments.stored import heard_alike, moments_named, moments_state, names_moments

PAYLOAD: dict[str, Any] = {
    "etag": "e1",
    "sidecar_etag": "s1",
    "sidecar_problem": "",
    "user_metadata_hash": "",
    "modified": 1,
    "duration_s": 60.0,
}


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ({"etag": "e2"}, False),
        ({"sidecar_etag": "s2"}, True),
        ({"sidecar_problem": "no JSON"}, True),
        ({"user_metadata_hash": "u"}, True),
        ({"modified": 2}, True),
    ],
)
def test_a_state_tells_all_that_moments_depend_on(change: dict[str, Any], *, alike: bool) -> None:
    """Whatever changes is another state; with the same sound it is heard alike."""
    before, after = (moments_state(each, Grid()) for each in (PAYLOAD, PAYLOAD | change))
    assert before != after
    assert heard_alike(before, after) == alike
    assert not heard_alike(before, moments_state(PAYLOAD, Grid(10, 10)))


def test_what_a_point_names_must_be_of_its_state() -> None:
    """The count follows from duration and windows; a short sound, or no windows, names nothing."""
    named = moments_named(PAYLOAD, Grid())
    assert named[0] == 12
    fields = {"moments": named[0], "moments_state": named[1]}
    assert names_moments(PAYLOAD | fields, named)
    assert not names_moments(PAYLOAD, named)
    assert not names_moments(PAYLOAD | fields, moments_named(PAYLOAD | {"etag": "e2"}, Grid()))
    short = PAYLOAD | {"duration_s": 7.0}
    assert moments_named(short, Grid()) == moments_named(PAYLOAD, None) == (0, "")
    assert names_moments(short, (0, ""))
