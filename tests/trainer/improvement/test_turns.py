"""Turns: nothing that judges was learned from."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from audiofuse.core.query import normalise
from audiofuse.trainer.improvement.archive import Archive, Verdicts
from audiofuse.trainer.improvement.turns import TURNS, Kind, Part, Question, Questions, Turn

Listener = Callable[..., Verdicts]


@pytest.fixture(scope="module")
def turns(archive_with: Callable[[Verdicts], Archive], listener: Listener) -> list[Turn]:
    """Return all turns of an archive with verdicts."""
    verdicts = listener(seed=0)
    meant = {question: question.split()[-1] for question in verdicts if question.startswith("my ")}
    book = Questions(archive_with(verdicts), meant, {"owl": ["hoo hoo"], "": ["hee haw"]})
    return [Turn(number, book) for number in range(TURNS)]


def shares(turn: Turn) -> Iterator[tuple[set[int], dict[str, Question]]]:
    """Yield sounds and questions of each part of a turn."""
    for part in Part:
        share = turn.share(part)
        yield set(share.sounds), {each.text: each for each in share.questions}


def test_parts_share_nothing(turns: list[Turn]) -> None:
    """No sound and no question is in two parts of a turn, and questions mean sounds of theirs."""
    for turn in turns:
        (learned, taught), (choosing, chosen_by), (sealed, judges) = shares(turn)
        assert not learned & choosing | learned & sealed | choosing & sealed
        assert not taught.keys() & chosen_by.keys() | taught.keys() & judges.keys()
        assert all(question.means <= sealed for question in judges.values())
        assert all(question.means | question.misses <= learned for question in taught.values())


def test_everything_is_sealed_once(
    turns: list[Turn], listener: Listener, archive_with: Callable[[Verdicts], Archive]
) -> None:
    """Each sound judges in one turn, and so does each question of a listener."""
    sounds = Counter(row for turn in turns for row in turn.share(Part.SEALED).sounds)
    asked = Counter(
        question.text
        for turn in turns
        for question in turn.share(Part.SEALED).questions
        if question.kind is Kind.ASKED
    )
    assert sounds == Counter(range(len(archive_with({}).sounds)))
    assert asked == Counter([*listener(seed=0)])


def test_words_of_a_sealed_sound_are_not_learned(
    turns: list[Turn], archive_with: Callable[[Verdicts], Archive]
) -> None:
    """A title that a sealed sound has is no lesson, though a sound to learn from has it as well."""
    archive = archive_with({})
    for turn in turns:
        (_, taught), _, (sealed, _) = shares(turn)
        own = {normalise(text) for row in sealed for text in archive.sounds[row].sentences}
        assert not own & taught.keys()


def test_a_question_means_its_fits_and_its_tag_but_no_miss(
    turns: list[Turn], archive_with: Callable[[Verdicts], Archive]
) -> None:
    """Where verdicts tell a tag, all its sounds are meant, less those that a listener refused."""
    (learned, taught), *_ = shares(turns[0])
    asked = next(each for each in taught.values() if each.kind is Kind.ASKED and each.about)
    sounds = archive_with({}).sounds
    tagged = {row for row in learned if asked.about in sounds[row].tags}
    assert tagged - asked.misses <= asked.means
    assert not asked.means & asked.misses
