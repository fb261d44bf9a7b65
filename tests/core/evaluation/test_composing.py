"""Recordings composed of short clips."""

from pathlib import Path

import numpy as np
import pytest
from made_sounds import noise, tone, write_wav

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip, Query
from audiofuse.core.evaluation.composing import (
    Composed,
    Shape,
    compose,
    find_backgrounds,
    write_recordings,
)
from audiofuse.core.evaluation.timed import read_timed
from audiofuse.core.items import Metadata

SHAPE = Shape(recordings=3, duration_s=6, events=2, kinds=3, quietest=6, loudest=12)


def _clip(path: Path, label: str, *queries: str) -> Clip:
    asked = tuple(Query(text, "", path.stem) for text in queries)
    return Clip(path, path.stem, "val", Metadata(labels=(label,)), asked)


@pytest.fixture
def clips(tmp_path: Path) -> list[Clip]:
    """Return a clip of rain, and tones with silence around them that have three labels."""
    made = [_clip(write_wav(tmp_path / "rain.wav", noise(2)), "Heavy rain")]
    for number, label in enumerate(("Dog", "Cat", "Cow")):
        silence = np.zeros(SAMPLE_RATE // 2, "f4")
        sound = np.concatenate([silence, tone(0.8, 300.0 * (number + 2)), silence])
        made.append(_clip(write_wav(tmp_path / f"{label}.wav", sound), label))
    return made


def _compose(clips: list[Clip], seed: int = 0) -> list[Composed]:
    return list(compose(clips, find_backgrounds(clips, ["rain"]), SHAPE, seed))


def _level(samples: Samples) -> float:
    return 10 * np.log10(np.square(samples, dtype="f8").mean())


def test_events_are_where_and_as_loud_as_is_told(clips: list[Clip]) -> None:
    """A tone stands out of its background by its level, and is told without the silence around."""
    for recording in _compose(clips):
        assert recording.samples.size == 6 * SAMPLE_RATE
        first, second = recording.events
        assert first.end_s <= 3 <= second.start_s
        assert first.kind is not second.kind
        before = recording.samples[: int(first.start_s * SAMPLE_RATE)]
        for event in (first, second):
            assert event.end_s - event.start_s == pytest.approx(0.8, abs=0.03)
            start, end = (int(each * SAMPLE_RATE) for each in (event.start_s, event.end_s))
            both = 10 * np.log10(10 ** (event.level_db / 10) + 1)
            assert 6 <= event.level_db <= 12
            if before.size > SAMPLE_RATE:  # long enough to tell how loud the background is
                above = _level(recording.samples[start:end]) - _level(before)
                assert above == pytest.approx(both, abs=1)


def test_the_seed_decides_everything(clips: list[Clip]) -> None:
    """The same seed gives the same samples and events, another one others."""
    first, again, other = (_compose(clips, seed) for seed in (0, 0, 1))
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one.samples, two.samples)
        assert one.events == two.events
        assert one.events != three.events


def test_what_is_written_can_be_evaluated(clips: list[Clip], tmp_path: Path) -> None:
    """The manifest names every event of every recording, and each recording can be decoded."""
    *paths, manifest = write_recordings(iter(_compose(clips)), tmp_path / "out")
    timed = read_timed(manifest)
    assert [clip.path for clip in timed.recordings.values()] == paths
    assert {clip.metadata.title for clip in timed.recordings.values()} == {"rain"}
    assert {query.text for query in timed.queries} == {"dog", "cat", "cow"}
    assert sum(len(query.relevant) for query in timed.queries) == 6
    with open_recording(paths[0], 10) as recording:
        assert sum(window.size for window in recording.windows()) == 6 * SAMPLE_RATE


def test_clips_are_asked_for_by_their_queries(clips: list[Clip], tmp_path: Path) -> None:
    """Where clips have queries those are asked, and clips without any are no events."""
    asked = [
        _clip(write_wav(tmp_path / f"{name}.wav", tone(1)), "Sound", f"a {name}", f"one {name}")
        for name in ("bell", "horn", "whistle")
    ]
    composed = list(compose([*clips, *asked], {"rain": clips[:1]}, SHAPE, 0))
    kinds = {event.kind.name: event.kind.queries for each in composed for event in each.events}
    assert kinds["bell"] == ("a bell", "one bell")
    assert set(kinds) == {"bell", "horn", "whistle"}


def test_what_is_missing_is_named(clips: list[Clip]) -> None:
    """A background without clips, too few kinds and a clip that is none are told."""
    with pytest.raises(ConfigurationError, match="background 'wind'"):
        find_backgrounds(clips, ["wind"])
    with pytest.raises(ConfigurationError, match="1 kinds of events; 3 are needed"):
        list(compose(clips[:2], {"rain": clips[:1]}, SHAPE, 0))
    clips[0].path.write_text("no sound")
    with pytest.raises(ConfigurationError, match=r"rain\.wav"):
        _compose(clips)
