"""What an archive teaches an encoder that was taught nothing of it: ``make bench-improve``.

The default encoder is trained anew without eight kinds of sounds, without all sentences and clips
about them, and without one collection (six minutes of a CPU, once: --bundle takes it as it is).
Half of the sounds of these kinds are indexed, the others are unseen, as is a third of all other
kinds. A listener asks for the kinds in half of the sentences that were left out, and judges the
first four hits by their labels; where none fits, another sound is named as the one that was sought.
Then the other half of the sentences is asked of the unseen sounds, as are sentences about other
kinds that improving has not met, and people's sentences of recordings that nobody indexed.
"""

import argparse
import hashlib
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.encoder import starting
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.inference import prepare
from audiofuse.core.encoder.pretrained import CLASS_NAMES, checkpoint_source, locate
from audiofuse.core.encoder.starting import SHIPPED_CHECKPOINT
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip, Query, queries_of
from audiofuse.core.evaluation.evaluation import (
    AUDIO,
    HYBRID,
    Gallery,
    encode_queries,
    item_vectors,
    judge,
)
from audiofuse.core.evaluation.intervals import estimate
from audiofuse.core.model.classes import class_sentences, read_class_sentences
from audiofuse.core.query import normalise
from audiofuse.core.settings import Settings
from audiofuse.trainer.data.corpus import Corpus, Division, prepare_corpus
from audiofuse.trainer.data.gallery import encode_cached
from audiofuse.trainer.improvement import tables
from audiofuse.trainer.improvement.archive import Archive, Sound, Verdicts
from audiofuse.trainer.improvement.improve import improve
from audiofuse.trainer.training import default
from audiofuse.trainer.training.fit import Fit

DATA = Path(__file__).parents[4] / "shared" / "data"
TAUGHT_MANIFESTS = ("esc", "extra")
EVERY_MANIFEST = (*TAUGHT_MANIFESTS, "human")
KINDS = (
    "Chainsaw", "Crying baby", "Dog", "Helicopter", "Keyboard typing", "Vacuum cleaner",
    "Coughing", "Crow",
)  # fmt: skip
COLLECTION = "sonic-pi"
WORDS = re.compile(
    r"chain\s?saw|bab(y|ies)|cry|dog|bark|puppy|helicopter|chopper|typ(ing|ewriter)|keyboard"
    r"|vacuum|hoover|cough|crow\b|caw", re.IGNORECASE,
)  # fmt: skip
PEOPLE = frozenset({"booth", "natsound165"})
VERDICTS, HITS = 200, 4
FOLDER = Path.home() / ".cache" / "audiofuse-bench-improve"
console = Console()


class World(NamedTuple):
    """Sounds as they are before improving: indexed, unseen, people's; and who asks what of them.

    ``said`` are a listener's sentences with the kind that each means; ``asked`` is what judges;
    ``general`` are the sentences by which an encoder is held to what it knew.
    """

    encoder: Encoder
    indexed: Gallery
    unseen: Gallery
    people: Gallery
    said: list[tuple[str, str]]
    asked: dict[str, list[Query]]
    general: dict[str, list[str]]


def main() -> None:
    """Train what is to be improved, if need be; improve it by listeners; show what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="held-out default of an earlier run")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="keeps what is made once")
    parser.add_argument("--seeds", type=int, default=1, help="so many listeners")
    parser.add_argument("--wrong", type=float, default=0.0, help="share of verdicts turned round")
    parser.add_argument("--by-chance", action="store_true", help="verdicts are given by chance")
    given = parser.parse_args()
    if missing := missing_files(trains=given.bundle is None):
        parser.error("what is needed is missing:\n" + "\n".join(missing))
    bundle = given.bundle or train_held_out(given.folder)
    world = world_of(bundle, given.folder)
    for seed in range(given.seeds):
        run(world, listen(world, seed, given.wrong, by_chance=given.by_chance), seed)


def missing_files(*, trains: bool) -> list[str]:
    """Return what is not there of manifests and, if one ``trains``, of pretrained parts, each why.

    All at once, before anything is computed: whoever puts files together goes but once.
    """
    wanted = map(manifest, EVERY_MANIFEST)
    missing = [f"{path} is not there" for path in wanted if not path.is_file()]
    settings = Settings()
    folder = settings.pretrained or settings.home / "pretrained"
    for source in (checkpoint_source(SHIPPED_CHECKPOINT), CLASS_NAMES) if trains else ():
        try:
            locate(source, folder)
        except ConfigurationError as error:
            missing.append(str(error))
    return missing


def manifest(name: str) -> Path:
    """Return the path of a manifest of the reference data."""
    return DATA / f"{name}.jsonl"


def corpus_of(folder: Path, *names: str) -> Corpus:
    """Read manifests of the reference data."""
    sources = [str(manifest(name)) for name in names]
    return prepare_corpus(sources, Settings(), folder / "cache", Division())


def gone_classes() -> set[str]:
    """Return the AudioSet classes behind the kinds that are held out."""
    return {name for kind in KINDS for name in default.label_classes()[kind]}


def train_held_out(folder: Path) -> Path:
    """Train the default without the kinds, their sentences and the collection."""
    gone = gone_classes()

    def without(names: Sequence[str]) -> list[list[str]]:
        known = zip(names, read_class_sentences(names), strict=True)
        return [[name] if name in gone else own for name, own in known]

    class Anchors(default.ClassAnchorLoss):
        """Teaches no sentence of the classes that are held out, not even their names."""

        def __init__(self, encoder: Encoder, names: Sequence[str]) -> None:
            super().__init__(encoder, names)
            kept = torch.tensor([names[int(each)] not in gone for each in self._classes])
            self._texts, self._classes = self._texts[kept], self._classes[kept]

    starting.read_class_sentences = default.read_class_sentences = without  # type: ignore[attr-defined]
    default.ClassAnchorLoss = Anchors  # type: ignore[misc]
    corpus = corpus_of(folder, *TAUGHT_MANIFESTS)
    corpus = replace(corpus, clips=[clip for clip in corpus.clips if not is_held_out(clip)])
    encoder, task = default.default_task(Settings(), corpus)  # heard with silence where it is used
    Fit(encoder, task, default.CONFIG, folder / "run").run(resume=(folder / "run").exists())
    return save_bundle(encoder, folder, "held-out", "")


def is_held_out(clip: Clip) -> bool:
    """Whether a clip is of a kind or collection that is held out, by its label or its words."""
    words = " ".join((clip.metadata.title, *clip.captions))
    return (
        clip.collection == COLLECTION
        or bool(set(clip.metadata.labels) & set(KINDS))
        or (clip.collection != "esc" and bool(WORDS.search(words)))
    )


def world_of(bundle: Path, folder: Path) -> World:
    """Hear all sounds once, and decide by hashes what is indexed and what is asked."""
    corpus = corpus_of(folder, *EVERY_MANIFEST)
    heard = encode_cached(prepare(load_bundle(bundle)), corpus.clips, corpus.entries)
    away = unseen_identities(heard.clips)
    people = chosen(heard, lambda clip: clip.collection in PEOPLE)
    unseen = chosen(heard, lambda clip: clip.identity in away)
    indexed = chosen(
        heard, lambda clip: clip.collection not in PEOPLE and clip.identity not in away
    )
    gone = gone_classes()
    general = {name: [text for text in own if place(text, "general") < 1 / 2]
               for name, own in class_sentences().items() if name not in gone}  # fmt: skip
    said: list[tuple[str, str]] = []
    asked: dict[str, list[Query]] = {"the kinds": [], "other kinds": []}
    for label, query in kind_queries(unseen.clips):
        if label not in KINDS:
            if all(query.text not in own for own in general.values()):
                asked["other kinds"].append(query)
        elif place(query.text, "said") < 1 / 2:
            said.append((query.text, label))
        else:
            asked["the kinds"].append(query)
    asked["people's sentences"] = queries_of(people.clips)
    return World(load_bundle(bundle), indexed, unseen, people, said, asked, general)


def kind_queries(clips: Sequence[Clip]) -> Iterator[tuple[str, Query]]:
    """Yield the sentences about each label of these clips, which mean all clips of the label."""
    classes, sentences = default.label_classes(), class_sentences()
    for label in sorted({label_of(clip) for clip in clips}):
        first, *others = dict.fromkeys(c.identity for c in clips if label_of(c) == label)
        for name in classes.get(label, ()):
            for text in sentences[name]:
                yield label, Query(text, label, first, tuple(others))


def chosen(gallery: Gallery, which: Callable[[Clip], bool]) -> Gallery:
    """Return some of a gallery's clips."""
    rows = [row for row, clip in enumerate(gallery.clips) if which(clip)]
    return Gallery([gallery.clips[row] for row in rows], [gallery.embeddings[row] for row in rows])


def label_of(clip: Clip) -> str:
    """Return the one label of an ESC clip, "" of others."""
    return clip.metadata.labels[0] if clip.collection == "esc" else ""


def place(words: str, use: str) -> float:
    """Return a place in [0, 1) by a hash."""
    return int.from_bytes(hashlib.sha256((use + words).encode()).digest()[:8]) / 2**64


def unseen_identities(clips: Sequence[Clip]) -> set[str]:
    """Return every second identity of each kind that is held out, every third of other kinds."""
    found: set[str] = set()
    for label in {label_of(clip) for clip in clips} - {""}:
        own = sorted({clip.identity for clip in clips if label_of(clip) == label},
                     key=lambda identity: place(identity, "unseen"))  # fmt: skip
        found |= set(own[1::2] if label in KINDS else own[2::3])
    return found


def listen(world: World, seed: int, wrong: float, *, by_chance: bool) -> Verdicts:
    """Return what a listener says of the first hits of his questions."""
    chance = random.Random(seed)
    clips = world.indexed.clips
    items = item_vectors(world.encoder, world.indexed, [clip.metadata.text for clip in clips])
    questions = chance.sample(world.said, len(world.said))
    asked = encode_queries(world.encoder, [Query(text, "", "") for text, _ in questions])
    found: Verdicts = {}
    for (text, label), cosines in zip(questions, asked @ items.T, strict=True):
        hits = cosines.topk(HITS).indices.tolist()
        if not any(label_of(clips[row]) == label for row in hits):
            sought = [row for row, clip in enumerate(clips) if label_of(clip) == label]
            hits = [*hits[:-1], chance.choice(sought)]
        for row in hits[: VERDICTS - sum(map(len, found.values()))]:
            fits = label_of(clips[row]) == label
            if by_chance:
                fits = chance.random() < 1 / 2
            elif chance.random() < wrong:
                fits = not fits
            found.setdefault(normalise(text), {})[row] = fits
    return found


def run(world: World, verdicts: Verdicts, seed: int) -> None:
    """Improve by these verdicts; show what the command would say, and what is true."""
    sounds = [
        Sound(str(row), "", clip, embedding.pooled[0])
        for row, (clip, embedding) in enumerate(
            zip(world.indexed.clips, world.indexed.embeddings, strict=True)
        )
    ]
    archive, began = Archive("held-out", sounds, verdicts), time.monotonic()
    outcome = improve(world.encoder, archive, world.general, lambda _done, _all: None)
    said = [fits for own in verdicts.values() for fits in own.values()]
    console.print(
        f"listener {seed}: {len(sounds)} sounds, {len(said)} verdicts ({sum(said)} fit) on "
        f"{len(verdicts)} questions, {time.monotonic() - began:.0f} s; published: "
        f"{outcome.judgement.is_better} {[*outcome.judgement.refusals]}"
    )
    if outcome.encoder:
        console.print(tables.table(outcome), unseen_table(world, outcome.encoder), outcome.told)


def unseen_table(world: World, improved: Encoder) -> Table:
    """Compare both encoders on what neither the listener nor the command has met."""
    shown = Table("unseen", "view", "questions", "old", "gain", "95 %", title="mAP@10")
    for name, queries in world.asked.items():
        gallery = world.people if queries[0].kind not in default.label_classes() else world.unseen
        old, new = (judge(each, gallery, queries) for each in (world.encoder, improved))
        for view in (AUDIO, HYBRID):
            before, after = (each[view].average_precision for each in (old, new))
            gain = estimate([query.identity for query in queries], after - before)
            by_text = estimate([query.text for query in queries], after - before)
            low, high = min(gain.low, by_text.low), max(gain.high, by_text.high)
            shown.add_row(name, view, str(len(queries)), f"{float(before.mean()):.3f}",
                          f"{gain.value:+.3f}", f"[{low:+.3f}, {high:+.3f}]")  # fmt: skip
    return shown


if __name__ == "__main__":
    main()
