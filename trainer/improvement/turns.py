"""Turns: in each of them a part of the sounds and of the questions is sealed, and judges.

A sealed split of a small archive would leave a handful of listeners' questions to judge by, too few
to tell anything. So each sound, by the hash of its identity, and each question, by the hash of its
words, is sealed in one turn of five: what a turn trains has seen neither, nor any question about a
sealed sound in that sound's own words. Another part chooses how far to go, the rest is learned.
What is sealed in which turn stays so from one run to the next, as the archive grows.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from audiofuse.core.query import normalise
from audiofuse.trainer.data.metadata import TEMPLATES
from audiofuse.trainer.improvement.archive import Archive

TURNS = 5


class Part(StrEnum):
    """What a sound or a question is for, in one turn."""

    LEARNED = "learned"
    CHOOSING = "choosing"
    SEALED = "sealed"


class Kind(StrEnum):
    """Whose words a question is made of."""

    ASKED = "asked"  # listeners', with their verdicts
    OWN = "own words"  # the archive's: titles, descriptions, captions, tags
    GENERAL = "general"  # sentences about kinds of sounds, which came with the encoder


class Question(NamedTuple):
    """Words, and the sounds of one part that they mean, or miss for sure.

    ``group`` names what it is about: questions of one group stand and fall together. ``about`` is
    the tag that it means, if it means one. A general sentence whose kind has no name here means
    nothing that is known.
    """

    text: str
    kind: Kind
    group: str
    about: str
    means: frozenset[int]
    misses: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Share:
    """One part of an archive in one turn: its sounds, by their number, and the questions to it."""

    sounds: Sequence[int]
    questions: Sequence[Question]

    def relevance(self, *, missed: bool = False) -> Tensor:
        """Return which sounds questions mean, or miss: boolean ``(questions, sounds)``."""
        columns = {row: column for column, row in enumerate(self.sounds)}
        found = torch.zeros(len(self.questions), len(self.sounds), dtype=torch.bool)
        for number, question in enumerate(self.questions):
            rows = question.misses if missed else question.means
            found[number, [columns[row] for row in rows]] = True
        return found


class Turn:
    """Who learns from what in one turn."""

    def __init__(self, number: int, book: "Questions") -> None:
        """Seal the part of that number; the next one chooses."""
        self.number = number
        self._book = book
        sounds = book.archive.sounds
        parts = [self._of_hash(sound.clip.identity) for sound in sounds]
        self._sounds = {
            part: [row for row, own in enumerate(parts) if own == part] for part in Part
        }
        self._own = {
            part: {normalise(text) for row in rows for text in sounds[row].sentences}
            for part, rows in self._sounds.items()
        }

    def share(self, part: Part) -> Share:
        """Return the sounds and the questions of a part."""
        rows = self._sounds[part]
        asked = [
            question._replace(means=question.means & set(rows), misses=question.misses & set(rows))
            for question in self._book.every
            if self.part_of(question) == part
        ]
        return Share(rows, [each for each in asked if each.means or each.kind is not Kind.OWN])

    def part_of(self, question: Question) -> Part:
        """Return what a question is for: in a sealed sound's own words it is sealed, and so on."""
        for part in (Part.SEALED, Part.CHOOSING):
            if question.text in self._own[part]:
                return part
        if question.kind is Kind.OWN and question.text in self._own[Part.LEARNED]:
            return Part.LEARNED
        return self._of_hash(question.text)

    def _of_hash(self, words: str) -> Part:
        digest = hashlib.sha256(words.encode()).digest()
        place = (int.from_bytes(digest[:8]) - self.number) % TURNS
        return {0: Part.SEALED, 1: Part.CHOOSING}.get(place, Part.LEARNED)


class Questions:
    """All questions that an archive can be asked."""

    def __init__(
        self, archive: Archive, meant: Mapping[str, str], general: Mapping[str, Sequence[str]]
    ) -> None:
        """Collect them.

        ``meant`` has the tag of each listener's question that means one, ``general`` sentences by
        the tag that they are about; "" for those that are about nothing here.
        """
        self.archive = archive
        self._tagged: dict[str, set[int]] = defaultdict(set)
        for row, sound in enumerate(archive.sounds):
            for tag in sound.tags:
                self._tagged[tag].add(row)
        asked = self._asked(meant)
        taken = {question.text for question in asked}
        self.every = asked + self._own_words(taken)
        taken |= {question.text for question in self.every}
        self.every += self._general(general, taken)

    def _asked(self, meant: Mapping[str, str]) -> list[Question]:
        found = []
        for text, verdicts in self.archive.verdicts.items():
            tag = meant.get(text, "")
            misses = frozenset(row for row, fits in verdicts.items() if not fits)
            fits = verdicts.keys() - misses
            means = frozenset(fits | (self._tagged[tag] if tag else set())) - misses
            found.append(Question(text, Kind.ASKED, text, tag, means, misses))
        return found

    def _own_words(self, taken: Collection[str]) -> list[Question]:
        means: dict[str, set[int]] = defaultdict(set)
        about: dict[str, tuple[str, str]] = {}
        for tag, rows in self._tagged.items():
            for template in ("{}", *TEMPLATES):
                text = normalise(template.format(tag))
                means[text] |= rows
                about.setdefault(text, (f"tag {tag}", tag))
        for row, sound in enumerate(self.archive.sounds):
            tag = min(sound.tags, key=lambda tag: len(self._tagged[tag]), default="")
            for text in map(normalise, sound.sentences):
                means[text].add(row)
                about.setdefault(text, (f"sound {sound.clip.identity}", tag))
        return [
            Question(text, Kind.OWN, *about[text], frozenset(rows))
            for text, rows in means.items()
            if text and text not in taken
        ]

    def _general(
        self, general: Mapping[str, Sequence[str]], taken: Collection[str]
    ) -> list[Question]:
        found = {
            text: (f"kind {tag}" if tag else "", tag)
            for tag, sentences in general.items()
            for text in map(normalise, sentences)
            if text not in taken
        }
        return [
            Question(text, Kind.GENERAL, group, tag, frozenset(self._tagged.get(tag, ())))
            for text, (group, tag) in found.items()
        ]
