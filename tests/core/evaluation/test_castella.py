"""CASTELLA's files as they are released."""

import json
from pathlib import Path

import pytest

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.timed import Span, TimedQuery, read_timed

RELEASED = [
    {
        "yid": "-0awng26xQ8",
        "global_caption": "A car and people",
        "duration": 299,
        "num_moments": 2,
        "moments": [
            {"local_caption": "A horn blares", "timestamps": [[27, 28], [289, 290]]},
            {"local_caption": "A door shuts", "timestamps": [[72, 76]]},
        ],
    },
    {"yid": "b", "global_caption": "Rain", "duration": 90, "num_moments": 0, "moments": []},
]


def test_each_caption_asks_for_its_moments(tmp_path: Path) -> None:
    """Captions of one recording stand together, and a recording without moments is not asked."""
    path = tmp_path / "test.json"
    path.write_text(json.dumps(RELEASED))
    timed = read_timed(path, tmp_path / "audio")
    name = "-0awng26xQ8.wav"
    assert timed.queries == [
        TimedQuery("A horn blares", name, (Span(name, 27, 28), Span(name, 289, 290))),
        TimedQuery("A door shuts", name, (Span(name, 72, 76),)),
    ]
    assert [clip.path for clip in timed.recordings.values()] == [tmp_path / "audio" / name]
    assert not timed.recordings[name].metadata.text  # the sentence for the whole is no metadata


def test_another_file_is_named(tmp_path: Path) -> None:
    """What is not as released is told with the field."""
    path = tmp_path / "test.json"
    path.write_text(json.dumps([{"yid": "a", "moments": [{"timestamps": []}]}]))
    with pytest.raises(ConfigurationError, match=r"0\.moments\.0\.local_caption"):
        read_timed(path)
