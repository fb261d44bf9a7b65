"""The paper's claims beside what came of them, and the tables of both."""

import io
from typing import Any

import pytest
import torch
from rich.console import Console

from audiofuse.trainer.data.metadata import Captions, Kind
from audiofuse.trainer.study.claims import Claim, claims
from audiofuse.trainer.study.grid import (
    Cell,
    Measured,
    Precisions,
    Results,
    Trial,
)
from audiofuse.trainer.study.tables import as_markdown, claims_table, grid_table

AUDIO = Cell(fusion="audio")
OS, FS = (Cell(fusion="late", kind=kind) for kind in (Kind.OS, Kind.FS))


def _results(**percent: dict[Cell, float]) -> Results:
    """Make results of mAP@10 in percent, by ``seed0`` and so on."""
    metrics = dict.fromkeys(("R@1", "R@5", "R@10", "MRR"), 0.5)
    return Results(
        [
            Measured(
                cell=cell, seed=int(seed[-1]), metrics={"mAP@10": value / 100} | metrics, config=""
            )
            for seed, cells in percent.items()
            for cell, value in cells.items()
        ],
        {"cs": "no clip to learn from has any"},
    )


THREE = _results(
    seed0={AUDIO: 20, OS: 22, FS: 30}, seed1={AUDIO: 21, OS: 22, FS: 28}, seed2={AUDIO: 22, OS: 25}
)


def test_claims_are_compared_seed_by_seed() -> None:
    """A difference is that of cells of one seed, in percentage points, beside the paper's."""
    keywords, descriptions, tags, *_ = claims(THREE)
    assert keywords.differences == pytest.approx({0: 2, 1: 1, 2: 3})
    assert (keywords.mean, keywords.deviation) == pytest.approx((2, 1))
    assert descriptions.differences == pytest.approx({0: 10, 1: 7})
    figures = [claim.paper_pp for claim in (keywords, descriptions, tags)]
    assert figures == [2.36, 8.82, 3.69]
    assert "ClothoV2: arXiv 2406.15897, abstract" in keywords.source
    assert "second-hand" in descriptions.source
    assert "AudioCaps" in tags.source
    assert (tags.differences, tags.mean, tags.deviation) == ({}, None, None)


def test_claims_over_several_kinds_are_their_mean() -> None:
    """Such a claim takes the kinds that were measured, in the seeds that have all of them."""
    changes: dict[str, dict[str, Any]] = {
        "mid": {"fusion": "mid"},
        "separate": {"separate": True},
        "artificial": {"captions": Captions.SUPPLIED},
        "templates": {"captions": Captions.TEMPLATES},
        "metadata only": {"fusion": "metadata"},
    }
    for statement, change in changes.items():
        other, another = (cell.model_copy(update=change) for cell in (OS, FS))
        results = _results(
            seed0={OS: 20, other: 19, FS: 30, another: 27}, seed1={OS: 20, other: 15, FS: 30}
        )
        told = {claim.statement: claim for claim in claims(results) if claim.differences}
        (name,) = told
        assert statement in name
        assert told[name].over == ("os", "fs")
        assert told[name].differences == pytest.approx({0: 2})


def test_an_interval_is_over_sounds_and_seeds() -> None:
    """With single queries' scores the margin is larger, and how much is a matter of the sounds."""
    identities = [f"sound {number:02}" for number in range(40)]

    def scored(odd: float, even: float) -> Precisions:
        values = [odd if number % 2 else even for number in range(40)]
        return Precisions(identities, torch.tensor(values, dtype=torch.float64))

    alike = {Trial(AUDIO, seed): scored(0.2, 0.2) for seed in range(3)}
    same, various, other = (
        alike | {Trial(OS, seed): precisions for seed in range(3)}
        for precisions in (
            scored(0.22, 0.22),
            scored(0.62, -0.18),
            Precisions(identities[1:], torch.zeros(39, dtype=torch.float64)),
        )
    )
    keywords = [
        claims(Results(THREE.measured, {}, queries))[0] for queries in ({}, same, various, other)
    ]
    margins = [claim.margin for claim in keywords]
    sounds = [claim.sounds for claim in keywords]
    assert sounds[0] is None
    assert sounds[3] is None  # other queries are no scores of the same
    assert sounds[1] == pytest.approx(0)
    assert sounds[2] == pytest.approx(12.4, abs=1.5)  # 1.96 · 40 / √40
    assert margins[:2] == pytest.approx([2.48, 2.48], abs=0.01)
    assert margins[2] == pytest.approx((2.484**2 + sounds[2] ** 2) ** 0.5, abs=0.01)


def test_each_data_set_has_its_claims() -> None:
    """What learned from both is compared on each, with what learned from that one's own tags."""
    joint = Cell(fusion="late", kind=Kind.OS_CS, both=True)
    closed = Cell(fusion="late", kind=Kind.CS)
    percent = {("clotho", OS): 20, ("clotho", joint): 22, ("audiocaps", closed): 40,
               ("audiocaps", joint): 39}  # fmt: skip
    measured = [
        Measured(cell=cell, seed=0, collection=name, metrics={"mAP@10": value / 100}, config="")
        for (name, cell), value in percent.items()
    ]
    told = {(c.collection, c.statement): c.mean for c in claims(Results(measured, {}))}
    assert told["clotho", "both data sets over its own, late"] == pytest.approx(2)
    assert told["audiocaps", "its own data set over both, late"] == pytest.approx(1)
    assert len(told) == 2 * len(claims(THREE))


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ({}, "cannot tell: it was not run"),
        ({0: 5.0}, "cannot tell: a single seed"),
        ({0: 2.0, 1: 2.1}, "borne out"),
        ({0: -2.0, 1: -2.1}, "not borne out"),
        ({0: 1.0, 1: 2.0, 2: 3.0}, "no clear difference"),  # 2 ± 2.48
        ({0: 1.5, 1: 2.0, 2: 2.5}, "borne out"),  # 2 ± 1.24
        (dict.fromkeys(range(8), 1.0) | {8: -8.0}, "no clear difference"),
        ({number: 1.0 + number % 2 for number in range(20)}, "borne out"),
    ],
)
def test_a_verdict_is_students(differences: dict[int, float], verdict: str) -> None:
    """A difference counts when its 95 % interval, by Student's t over seeds, leaves out zero."""
    claim = Claim("this over that", None, "", (), differences, "it was not run")
    assert claim.verdict == verdict


def test_cells_that_are_not_there_are_told() -> None:
    """A claim names what the dataset has none of if that is all, else that cells are missing."""
    missing = "cannot tell: no seed has its cells"
    assert {claim.verdict for claim in claims(Results([], {}))} == {missing}
    left_out = {"cs": "none", "supplied": "no words"}
    told = {claim.statement: claim.verdict for claim in claims(Results([], left_out))}
    assert told["closed-set tags, late, over audio only"] == "cannot tell: cs: none"
    artificial = "cannot tell: cs: none; supplied: no words"
    assert told["real captions over artificial, late"] == artificial
    assert told["shared text tower over separate, late"] == missing


def test_markdown_has_every_cell() -> None:
    """Both tables are well formed and hold each cell, each claim and what was left out."""
    text = as_markdown(THREE)
    assert "| audio |  |  | real |  |  | 21.00 ± 1.00 | 50.00 | 50.00 | 50.00 | 3 |" in text
    assert "| late | os | shared | real |  |  | 23.00 ± 1.73 |" in text
    assert "| late | fs | shared | real |  |  | 29.00 ± 1.41 | 50.00 | 50.00 | 50.00 | 2 |" in text
    assert "left out: cs: no clip to learn from has any" in text
    assert (
        "|  | keywords, late, over audio only | +2.36 | +2.00 ± 1.00 | [-0.48, +4.48] | 3 | os |"
        in text
    )
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    for table, rows in zip(tables, (3, len(claims(THREE))), strict=True):
        lines = table.splitlines()
        assert len(lines) == 2 + rows
        assert len({line.count("|") for line in lines}) == 1


def test_tables_show_what_markdown_does() -> None:
    """On the terminal stand the same cells, claims and reasons."""
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(grid_table(THREE), claims_table(claims(THREE)))
    shown = " ".join(console.export_text().split())
    assert "late fs shared real 29.00 ± 1.41 50.00 50.00 50.00 2" in shown
    assert "left out: cs: no clip to learn from has any" in shown
    assert (
        "keywords, late, over audio only +2.36 +2.00 ± 1.00 [-0.48, +4.48] 3 os no clear" in shown
    )
