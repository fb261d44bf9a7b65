"""The grid: its cells and their names, and what a data set is tested by."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip
from audiofuse.core.items import Metadata
from audiofuse.core.model.config import TINY
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.data.metadata import Captions, Kind
from audiofuse.trainer.study.grid import (
    Cell,
    grid,
    paper_cells,
    parts_there,
    rank_for_captions,
    select_cells,
)
from audiofuse.trainer.training.fit import freeze_parts

AUDIO = Cell(fusion="audio")
OS, FS = (Cell(fusion="late", kind=kind) for kind in (Kind.OS, Kind.FS))
REAL = [Captions.REAL]


def test_the_grid_has_each_system_once() -> None:
    """Audio alone has only its captions to vary, everything else all four axes."""
    cells = grid()
    assert len(set(cells)) == len(cells) == 3 + 3 * 4 * 2 * 3
    assert [cell for cell in cells if cell.fusion == "audio"] == [
        AUDIO,
        Cell(fusion="audio", captions=Captions.TEMPLATES),
        Cell(fusion="audio", captions=Captions.SUPPLIED),
    ]
    assert grid(["late"], [Kind.OS, Kind.FS], [False], REAL) == [OS, FS]
    joint = [cell for cell in paper_cells() if cell.both]
    assert [cell.name for cell in joint] == [
        "audio-real-both",
        *(f"{fusion}-os+cs-{tower}-real-both" for fusion in ("metadata", "late", "mid")
          for tower in ("shared", "separate")),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [{"fusion": "late"}, {"fusion": "audio", "kind": "os"}, {"fusion": "audio", "separate": True}],
)
def test_a_cell_that_is_no_system_is_refused(wrong: dict[str, Any]) -> None:
    """Fusing needs a kind of metadata, and audio alone takes neither a kind nor a tower."""
    with pytest.raises(ValidationError, match="audio alone"):
        Cell.model_validate(wrong)


def test_cells_are_chosen_by_name() -> None:
    """A pattern takes the cells whose names match, in the grid's order; a wrong one is refused."""
    reduced = select_cells(["*-shared-real", "audio-real"])
    assert reduced == grid(separate=[False], captions=REAL)
    assert [cell.name for cell in select_cells(["late-fs-*-real"])] == [
        "late-fs-shared-real",
        "late-fs-separate-real",
    ]
    assert select_cells([]) == paper_cells()
    with pytest.raises(ConfigurationError, match=r"no cell matches 'late-so-\*'; .*late-os-shared"):
        select_cells(["late-so-*"])


def test_val_is_set_aside_for_test() -> None:
    """Where test asks, its clips and distractors are ranked, and val is neither asked nor found."""
    splits = ["train", "val", "test", "distractor"]
    clips = [
        Clip(Path(f"{split}.wav"), split, split, Metadata(), captions=("a sound",))
        for split in splits
    ]
    corpus = Corpus(clips, {})
    ranked = rank_for_captions(replace(corpus, clips=clips))
    assert ranked.split == "test"
    assert [clip.split for clip in ranked.clips] == ["test", "distractor"]
    clips[2] = replace(clips[2], captions=())
    ranked = rank_for_captions(replace(corpus, clips=clips))
    assert ranked.split == "val"
    assert [clip.split for clip in ranked.clips] == ["val", "test", "distractor"]


def test_the_grid_freezes_only_what_there_is() -> None:
    """A misspelt part is refused by every cell; a part that only some cells have is not."""
    late = Encoder.random(TINY, seed=0)
    names = ["mid_fusion.layers", "audio_tower.classifier", "separate_metadata_tower"]
    assert parts_there(late, names) == ["audio_tower.classifier"]
    with pytest.raises(ConfigurationError, match=r"no part 'text_tower\.bret'"):
        freeze_parts(late, parts_there(late, ["text_tower.bret"]))
