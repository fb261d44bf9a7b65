"""Splits that hold, and no sound in two of them."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.items import Metadata
from audiofuse.core.settings import Settings
from audiofuse.trainer.data.datasets import read_dataset
from audiofuse.trainer.data.splits import assign_splits, check_leakage


def _clip(name: str, split: str = "", identity: str = "") -> Clip:
    return Clip(Path(name), identity or name, split, Metadata())


def test_splits_are_about_as_large_as_asked() -> None:
    """A share of the identities is val, another one by another seed; given splits stay."""
    clips = [_clip(f"{number}.wav") for number in range(2000)] + [_clip("held.wav", "test")]
    splits = [clip.split for clip in assign_splits(clips, 0.2, seed=0)]
    assert 350 < splits.count("val") < 450
    assert splits.count("train") == 2000 - splits.count("val")
    assert splits[-1] == "test"
    assert splits != [clip.split for clip in assign_splits(clips, 0.2, seed=1)]


@pytest.mark.parametrize(("share", "split"), [(0.0, "train"), (1.0, "val")])
def test_a_share_may_be_none_or_all(share: float, split: str) -> None:
    """Without a validation share all is for training, and the other way round."""
    clips = assign_splits([_clip(f"{number}.wav") for number in range(100)], share, seed=0)
    assert {clip.split for clip in clips} == {split}


def test_more_data_moves_nobody() -> None:
    """Clips that come later, in whatever order, leave all others where they were."""
    clips = [_clip(f"{number}.wav") for number in range(200)]
    before = assign_splits(clips[:100], 0.3, seed=0)
    after = assign_splits(clips[::-1], 0.3, seed=0)[::-1]
    assert after[:100] == before


def test_an_identity_stays_together() -> None:
    """Clips of one identity get one split, and that of a clip which has one already."""
    alike = [_clip(f"{number}.wav", identity="owl") for number in range(20)]
    assert len({clip.split for clip in assign_splits(alike, 0.5, seed=0)}) == 1
    alike[7] = replace(alike[7], split="distractor")
    assert {clip.split for clip in assign_splits(alike, 0.5, seed=0)} == {"distractor"}


@pytest.mark.parametrize(
    ("clips", "named"),
    [
        ([_clip("a.wav", "train", "owl"), _clip("b.wav", "test", "owl")], "identity"),
        ([_clip("x/../a.wav", "train", "1"), _clip("a.wav", "val", "2")], "file"),
        ([_clip("same-1.wav", "train"), _clip("same-2.wav", "distractor")], "content"),
    ],
)
def test_a_sound_in_two_splits_is_refused(clips: list[Clip], named: str) -> None:
    """One identity, one file or one content in two splits is an error that names both clips."""
    contents = {Path("same-1.wav"): "c", Path("same-2.wav"): "c", Path("a.wav"): "a"}
    with pytest.raises(ConfigurationError, match=f"^1 sounds .* have one {named}$") as caught:
        check_leakage(clips, contents)
    for clip in clips:
        assert f"{clip.path} ({clip.split})" in str(caught.value)


def test_many_leaks_are_counted_and_a_few_named() -> None:
    """The first few are enough to see what is wrong; the number tells how much."""
    clips = [_clip(f"{n}-{split}", split, str(n)) for n in range(40) for split in ("train", "val")]
    with pytest.raises(ConfigurationError, match="40 sounds") as caught:
        check_leakage(clips, {})
    assert str(caught.value).count("have one identity") == 5


def test_nothing_leaks_within_a_split() -> None:
    """The same sound several times in one split, and clips without known content, are fine."""
    clips = [_clip("a.wav", "train", "owl"), _clip("b.wav", "train", "owl"), _clip("c.wav", "val")]
    check_leakage(clips, {Path("a.wav"): "same", Path("b.wav"): "same"})


def test_manifests_of_the_project_do_not_leak(shared: Path) -> None:
    """The reference manifests hold no identity in two splits, once every clip has one."""
    sources = [str(shared / "data" / f"{name}.jsonl") for name in ("human", "esc", "extra")]
    clips = [
        clip
        for source in sources
        for clip in read_dataset(source, Settings(), Path("downloads")).clips
    ]
    assert len(clips) == 1319
    check_leakage(assign_splits(clips, 0.1, seed=0), {})


def test_published_splits_are_kept_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    """Sounds that a benchmark has in two of its splits stay, and the log counts them."""
    clips = [
        replace(_clip("clotho/a.wav", "train", "1"), origin="freesound-86163"),
        replace(_clip("clotho/b.wav", "val", "2"), origin="freesound-86163"),
    ]
    with caplog.at_level(logging.WARNING):
        check_leakage(clips, {}, {clip.path for clip in clips})
    assert "1 sounds are in several of the published splits" in caplog.text
    mine = _clip("mine.wav", "train", "freesound-86163")
    with pytest.raises(ConfigurationError, match=r"mine\.wav \(train\)"):
        check_leakage([*clips, mine], {}, {clip.path for clip in clips})


def test_a_recording_of_a_benchmark_goes_where_the_benchmark_has_it() -> None:
    """A clip without a split follows the published clip that was cut from the same recording."""
    known = replace(_clip("a.wav", "test", "clotho/test/a.wav"), origin="freesound-1")
    mine = [_clip(f"{number}.wav", identity="freesound-1") for number in range(3)]
    assert {clip.split for clip in assign_splits([known, *mine], 0.5, seed=0)} == {"test"}
