"""What scores mean: how far off the shipped encoder's probabilities are: ``make bench-relevance``.

On the sounds and sentences of a manifest with the splits train and val, as human.jsonl, of which
the encoder learned nothing. It tells the expected calibration error of curves that are fitted on
either split, as the shipped ones are on train, and checked on both; and how many of the questions
in ``tests/data/absent_questions.txt``, all for kinds of sounds that are not among these, are told
that nothing sounds like that, beside how many with an answer are told so by mistake.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import prepare, use_cpus
from audiofuse.core.encoder.starting import default_encoder
from audiofuse.core.evaluation.clips import (
    TRAIN,
    VAL,
    Query,
    ask_for_captions,
    read_manifest,
    select_queries,
)
from audiofuse.core.evaluation.evaluation import (
    Gallery,
    blank_metadata,
    encode_clips,
    encode_queries,
    item_vectors,
)
from audiofuse.core.model.relevance import Relevance
from audiofuse.core.query import normalise
from audiofuse.trainer.training.calibration import (
    BLANKED,
    SHOWN,
    Hits,
    Judged,
    Truths,
    expected_error,
    fit_relevance,
)

ABSENT = Path(__file__).parents[2] / "data" / "absent_questions.txt"
HUMAN = Path(__file__).parents[4] / "shared" / "data" / "human.jsonl"

console = Console()


def main(
    manifest: Annotated[Path, typer.Argument(help="With questions of train and val.")] = HUMAN,
) -> None:
    """Print both tables."""
    use_cpus()
    encoder = prepare(default_encoder())
    clips = [ask_for_captions(clip) for clip in read_manifest(manifest)]
    everything = encode_clips(encoder, clips)
    judged = {split: _of_split(everything, split) for split in (TRAIN, VAL)}
    hits = {split: Hits.of(encoder, each) for split, each in judged.items()}
    shipped = encoder.config.relevance
    assert shipped is not None
    console.print(_errors(hits))
    console.print(_told(encoder, everything, judged, shipped))


def _of_split(gallery: Gallery, split: str) -> Judged:
    """Return the questions of a split, and all clips but those of the other one."""
    other = {TRAIN: VAL, VAL: TRAIN}[split]
    rows = [row for row, clip in enumerate(gallery.clips) if clip.split != other]
    clips, embeddings = gallery.clips, gallery.embeddings
    chosen = Gallery([clips[row] for row in rows], [embeddings[row] for row in rows])
    return Judged(chosen, select_queries(clips, split))


def _errors(hits: dict[str, Hits]) -> Table:
    table = Table("fitted on", "checked on", "all", "answers there", "with words", "without",
                  "best hits", title="expected calibration error")  # fmt: skip
    for name, fitted in hits.items():
        relevance = fit_relevance(fitted)
        for split, each in hits.items():
            table.add_row(name, split, *(f"{e:.3f}" for e in _errors_of(each, relevance)))
    return table


def _errors_of(hits: Hits, relevance: Relevance) -> list[float]:
    told = hits.told(relevance)
    first = np.ones(len(told), bool)  # the hits of one question lie together, the best one first
    same = hits.question[1:] == hits.question[:-1]
    first[1:] = ~same | (hits.score[1:] > hits.score[:-1])
    chosen: list[Truths] = [
        np.ones(len(told), bool), hits.answered, hits.worded, ~hits.worded, first,
    ]  # fmt: skip
    return [expected_error(told[c], hits.meant[c], hits.weight[c]) for c in chosen]


def _told(
    encoder: Encoder, gallery: Gallery, judged: dict[str, Judged], relevance: Relevance
) -> Table:
    absent = [Query(text, "", "") for text in ABSENT.read_text().splitlines()]
    asked = {f"{len(absent)} absent sounds": absent}
    asked |= {f"{len(each.queries)} of {s}": list(each.queries) for s, each in judged.items()}
    table = Table("metadata taken away", *asked,
                  title=f"told nothing, below {relevance.nothing_below:.3f}")  # fmt: skip
    for blanked in BLANKED:
        blank = blank_metadata(gallery, blanked)
        texts = [clip.metadata.text for clip in blank.clips]
        items = item_vectors(encoder, blank, texts)
        worded = np.array([bool(normalise(text)) for text in texts])
        shares = []
        for queries in asked.values():
            best = (encode_queries(encoder, queries) @ items.T).topk(SHOWN, dim=1)
            pairs = zip(best.values.tolist(), worded[best.indices.numpy()].tolist(), strict=True)
            told = [
                max(relevance.of(s, has_words=w) for s, w in zip(*each, strict=True))
                for each in pairs
            ]
            shares.append(float(np.mean([each < relevance.nothing_below for each in told])))
        table.add_row(f"{blanked:.0%}", *(f"{share:.1%}" for share in shares))
    return table


if __name__ == "__main__":
    typer.run(main)
