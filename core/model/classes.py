"""The 527 AudioSet classes as texts: their names, and sentences that describe each."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

CLASS_SENTENCES = Path(str(files("audiofuse.core.model"))) / "assets" / "class_sentences.tsv"


def class_sentences() -> Mapping[str, list[str]]:
    """Return ten sentences for each class, by its name."""
    lines = CLASS_SENTENCES.read_text(encoding="utf-8").splitlines()
    return {name: text.split("|") for name, text in (line.split("\t") for line in lines)}


def read_class_sentences(names: Sequence[str]) -> list[list[str]]:
    """Return the sentences that describe each class, in the order of the names.

    A class that the shipped list does not know is described by its name alone.
    """
    known = class_sentences()
    return [known.get(name, [name]) for name in names]
