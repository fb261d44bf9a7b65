"""What came of it: a table for the terminal, the model card, and figures for programs."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from audiofuse.trainer.improvement.archive import Archive
from audiofuse.trainer.improvement.improve import Outcome
from audiofuse.trainer.improvement.judging import Figure

COLUMNS = ("slice", "view", "questions", "old", "new", "gain", "95 % interval")
MOST_ROWS = 20  # of tags and folders, those with most questions; metrics.json has all


def table(outcome: Outcome) -> Table:
    """Return the figures of each slice, tag and folder: mAP@10."""
    shown = Table(
        *COLUMNS, box=SIMPLE_HEAD, title="mAP@10 on what was sealed", title_justify="left"
    )
    for row in _rows(outcome):
        shown.add_row(*row)
    return shown


def card(name: str, archive: Archive, outcome: Outcome) -> str:
    """Return the model card."""
    lines = ["| " + " | ".join(each) + " |" for each in (COLUMNS, ["---"] * len(COLUMNS))]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(outcome)]
    doubt = "" if outcome.doubt is None else f", which chance would give in {outcome.doubt:.1%}"
    return (
        f"# audiofuse encoder {name}\n\n"
        f"{archive.version}, improved by the archive that it served: {len(archive.sounds)} sounds "
        f"with their words, and {archive.count} verdicts of listeners on "
        f"{len(archive.verdicts)} questions{doubt}. What stands behind the towers has learned; "
        "audio vectors are those of before.\n\n"
        "mAP@10 of before (old) and after (new). Each sound and each question was sealed in one of "
        "five turns, whose weights learned from neither; this encoder is the mean of the five. "
        "Intervals: over questions or sounds, whichever is wider; over questions alone for tags, "
        "folders and other sounds.\n\n" + "\n".join(lines) + f"\n\n{outcome.told}"
    )


def metrics(archive: Archive, outcome: Outcome) -> dict[str, Any]:
    """Return all figures for JSON."""
    facts = {
        "from": archive.version,
        "sounds": len(archive.sounds),
        "questions": len(archive.verdicts),
        "verdicts": archive.count,
        "doubt": outcome.doubt,
        "ways": list(outcome.ways),
    }
    details = {
        name: {view: figure._asdict() for view, figure in views.items()}
        for name, views in outcome.details.items()
    }
    return {"improvement": facts | outcome.judgement.as_dict() | {"details": details}}


def _rows(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    yield from _rows_of(outcome.judgement.figures)
    most = sorted(outcome.details.items(), key=lambda each: -_questions(each[1]))[:MOST_ROWS]
    yield from _rows_of(dict(sorted(most)))


def _rows_of(slices: Mapping[str, Mapping[str, Figure]]) -> Iterator[tuple[str, ...]]:
    for name, views in slices.items():
        for view, each in views.items():
            yield (
                name, view, str(each.questions), f"{each.old:.3f}", f"{each.new:.3f}",
                f"{each.gain:+.3f}", f"[{each.low:+.3f}, {each.high:+.3f}]",
            )  # fmt: skip


def _questions(views: Mapping[str, Figure]) -> int:
    return max(each.questions for each in views.values())
