"""Examples: which words, which part of a sound, which sentence, in which order and batch."""

import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.items import Metadata
from audiofuse.trainer.data.batches import (
    Batches,
    BatchPlan,
    ExampleConfig,
    Examples,
    training_rows,
)
from audiofuse.trainer.data.cache import Entry
from audiofuse.trainer.data.metadata import TEMPLATES, Captions, Kind

SAMPLES = 3 * 32_000
PLAIN = ExampleConfig(Kind.ALL, crop_s=30.0, drop_metadata=0.0, captions=Captions.REAL, seed=0)
WORDS = Metadata("a title", "what it is", ("open tag",), ("closed tag",))


@pytest.fixture
def entries(tmp_path: Path) -> dict[Path, Entry]:
    """Return the cache's entries of eight sounds of 3 s, in each of which no sample is twice."""
    found = {}
    for number in range(8):
        file = tmp_path / f"{number}.npy"
        np.save(file, np.arange(SAMPLES, dtype=np.int64).astype(np.int16))
        found[Path(f"{number}.wav")] = Entry(file, SAMPLES, str(number))
    return found


def _clips(entries: dict[Path, Entry]) -> list[Clip]:
    return [
        Clip(path, path.stem, "train", WORDS, captions=(f"first of {path.stem}", "another one"))
        for path in entries
    ]


def _examples(
    entries: dict[Path, Entry], config: ExampleConfig = PLAIN, *, every: bool = True
) -> Examples:
    return Examples(training_rows(_clips(entries), every_caption=every), entries, config)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Kind.CS, "closed tag"),
        (Kind.OS, "a title open tag"),
        (Kind.OS_CS, "a title open tag closed tag"),
        (Kind.FS, "another one"),
        (Kind.ALL, "a title what it is open tag closed tag"),
    ],
)
def test_the_kind_of_metadata_is_trained_on(
    entries: dict[Path, Entry], kind: Kind, words: str
) -> None:
    """An example carries the metadata of its kind, and the sentence of its row."""
    example = _examples(entries, replace(PLAIN, kind=kind))[0, 0]
    assert (example.metadata, example.sentence) == (words, "first of 0")


def test_artificial_captions_replace_written_ones(entries: dict[Path, Entry]) -> None:
    """Every sentence is made of the tags then, and no written one is left."""
    examples = _examples(entries, replace(PLAIN, captions=Captions.TEMPLATES))
    sentences = {examples[epoch, row].sentence for epoch in range(3) for row in range(16)}
    fillings = ("open tag", "closed tag", "open tag and closed tag", "closed tag and open tag")
    assert sentences <= {template.format(words) for template in TEMPLATES for words in fillings}


def test_clips_of_no_words_have_no_artificial_caption(
    entries: dict[Path, Entry], caplog: pytest.LogCaptureFixture
) -> None:
    """They are left out and counted, and never fall back to the written ones."""
    clips = _clips(entries)
    clips[0] = replace(clips[0], metadata=Metadata(description="no tag, no title"))
    rows = training_rows(clips, every_caption=True, captions=Captions.TEMPLATES)
    assert {row.clip.identity for row in rows} == {str(number) for number in range(1, 8)}
    assert "1 of 8 clips have no templates captions" in caplog.text


def test_supplied_captions_are_trained_on_alone(entries: dict[Path, Entry]) -> None:
    """Each one that came with a clip is a row; clips without have none, whatever people wrote."""
    clips = _clips(entries)
    clips[3] = replace(clips[3], captions=(), artificial=("a machine's", "another one of it"))
    rows = training_rows(clips, every_caption=True, captions=Captions.SUPPLIED)
    examples = Examples(rows, entries, replace(PLAIN, captions=Captions.SUPPLIED, kind=Kind.FS))
    assert [examples[0, row].sentence for row in range(len(rows))] == [*clips[3].artificial]
    clips[3] = replace(clips[3], captions=("a person's",))
    described = training_rows(clips, every_caption=False, captions=Captions.SUPPLIED)
    examples = Examples(described, entries, replace(examples.how, captions=Captions.SUPPLIED))
    assert {examples[epoch, 0].sentence for epoch in range(20)} == {*clips[3].artificial}


def test_templates_need_no_written_caption(entries: dict[Path, Entry]) -> None:
    """A clip that nobody described has one sentence of its tags."""
    clips = [replace(clip, captions=()) for clip in _clips(entries)]
    assert len(training_rows(clips, every_caption=True, captions=Captions.TEMPLATES)) == 8
    assert not training_rows(clips, every_caption=True)


def test_a_crop_may_begin_anywhere(entries: dict[Path, Entry]) -> None:
    """A longer sound is cut to length at a place that the epoch draws, not at its beginning."""
    examples = _examples(entries, replace(PLAIN, crop_s=1.0))
    starts = set()
    for epoch in range(20):
        (window,) = examples[epoch, 0].windows
        assert window.size == 32_000
        starts.add(float(window[0]))
    assert len(starts) > 10


@pytest.mark.parametrize(("share", "texts"), [(0.0, {False}), (1.0, {True}), (0.5, {True, False})])
def test_metadata_is_dropped_by_share(
    entries: dict[Path, Entry], share: float, texts: set[bool]
) -> None:
    """About that share of the examples go without metadata."""
    examples = _examples(entries, replace(PLAIN, drop_metadata=share))
    dropped = [not examples[epoch, row].metadata for epoch in range(8) for row in range(16)]
    assert set(dropped) == texts
    assert abs(sum(dropped) / len(dropped) - share) < 0.2


def test_an_example_is_a_function_of_its_place(entries: dict[Path, Entry]) -> None:
    """Seed, epoch and row decide everything random; a resumed run reads the same."""
    config = replace(PLAIN, crop_s=1.0, drop_metadata=0.5, captions=Captions.TEMPLATES)
    first, again = _examples(entries, config), _examples(entries, config)
    for place in ((0, 3), (1, 3), (5, 0)):
        one, other = first[place], again[place]
        assert (one.metadata, one.sentence) == (other.metadata, other.sentence)
        assert np.array_equal(one.windows[0], other.windows[0])


def test_any_caption_of_a_clip_is_taken(entries: dict[Path, Entry]) -> None:
    """Where an epoch sees each clip once, its sentences come from all of its captions."""
    examples = _examples(entries, every=False)
    assert len(examples.rows) == 8
    assert {examples[epoch, 0].sentence for epoch in range(20)} == {"first of 0", "another one"}


def _sentences(found: Sequence[Sequence[object]]) -> list[list[str]]:
    return [[f"{each.identity} {each.sentence}" for each in batch] for batch in found]  # type: ignore[attr-defined]


def test_processes_share_a_batch(entries: dict[Path, Entry]) -> None:
    """Two processes get the two halves of every batch that one would get, in any epoch."""
    examples = _examples(entries)
    whole = _sentences(list(Batches(examples, BatchPlan(4)).epoch(1, 0)))
    halves = [_sentences(list(Batches(examples, BatchPlan(4, r, 2)).epoch(1, 0))) for r in (0, 1)]
    assert [len(batch) for batch in whole] == [4] * 4
    for batch, first, second in zip(whole, *halves, strict=True):
        assert sorted(first + second) == sorted(batch)


def test_an_epoch_is_gone_on_with(entries: dict[Path, Entry]) -> None:
    """From batch two on come the very batches that an uninterrupted epoch has there."""
    examples = _examples(entries)
    whole, rest = (_sentences(list(Batches(examples, BatchPlan(3)).epoch(0, at))) for at in (0, 2))
    assert rest == whole[2:]
    assert len(whole) == 5  # the sixteenth row fills no batch
    assert whole != _sentences(list(Batches(examples, BatchPlan(3)).epoch(1, 0)))


def test_processes_that_read_ahead_are_started_once(entries: dict[Path, Entry]) -> None:
    """A second epoch is read by the processes of the first, and is what no process would give."""
    examples = _examples(entries)
    ahead, plain = (Batches(examples, BatchPlan(4, workers=workers)) for workers in (1, 0))
    seen = []
    for epoch in (0, 1):
        assert _sentences(list(ahead.epoch(epoch, 0))) == _sentences(list(plain.epoch(epoch, 0)))
        seen.append([child.pid for child in multiprocessing.active_children()])
    assert seen[0] == seen[1] != []
