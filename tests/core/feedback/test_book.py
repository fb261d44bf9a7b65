"""The book of verdicts: nothing that was said is lost, and what is to be forgotten is gone."""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from audiofuse.core.errors import ObjectChanged, Unavailable
from audiofuse.core.feedback.book import Book, BookFull, open_book
from audiofuse.core.feedback.verdicts import Opinion, Verdict
from audiofuse.core.settings import Settings
from audiofuse.core.storage import files

MONDAY = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
DAY_S = 24 * 3600.0


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Return settings of each kind of registry."""
    if request.param == "folder":
        return Settings(registry=str(tmp_path / "registry"))
    aws: Settings = request.getfixturevalue("aws_settings")
    return aws.model_copy(update={"registry": f"{aws.bucket}/some/encoders"})


@pytest.fixture
def book(settings: Settings) -> Book:
    """Return an empty book."""
    return open_book(settings)


def said(text: str = "a dog", at: float = MONDAY, **changed: str) -> Verdict:
    """Return what somebody says."""
    facts = {"caller": "me", "item": "1f0d", "key": "dog.wav", "etag": "e", "encoder": "v"}
    return Verdict(text=text, at=at, opinion=Opinion.FITS, **{**facts, **changed})


def test_what_is_said_is_kept_in_order_by_day(book: Book, settings: Settings) -> None:
    """Verdicts come back as they were, day by day, for whoever opens the book."""
    later, earlier, other = said("b", MONDAY + DAY_S), said("a"), said("c", caller="you")
    book.add([later])
    book.add([earlier, other])
    assert list(open_book(settings).read()) == [earlier, other, later]


def test_an_empty_book_has_nothing(book: Book) -> None:
    """Before anything is said there is nothing to read or to erase."""
    assert list(book.read()) == []
    assert book.erase(lambda _: True) == 0


def test_writers_at_the_same_time_lose_nothing(book: Book, settings: Settings) -> None:
    """Of six writers at once every verdict is kept, each once."""
    verdicts = [said(str(number)) for number in range(6)]
    threads = [
        threading.Thread(target=open_book(settings).add, args=([each],)) for each in verdicts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.text for each in book.read()) == [each.text for each in verdicts]


def test_a_writer_that_is_always_too_late_says_so(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that others replace each time is no endless loop, and no verdict is thought kept."""
    monkeypatch.setattr(files, "PAUSE_S", 0)

    def too_late(*_: object) -> None:
        raise ObjectChanged("somebody was faster")

    monkeypatch.setattr(book._files, "put", too_late)
    with pytest.raises(Unavailable, match="too many at once"):
        book.add([said()])


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (lambda verdict: verdict.caller == "you", ["a", "b"]),
        (lambda verdict: verdict.key == "dog.wav", ["c"]),
        (lambda _: False, ["a", "b", "c"]),
    ],
)
def test_what_is_erased_is_gone(
    book: Book, chosen: Callable[[Verdict], bool], left: list[str]
) -> None:
    """What one caller said, or what was said of one item, is taken out; everything else stays."""
    book.add([said("a"), said("b", MONDAY + DAY_S), said("c", caller="you", key="cat.wav")])
    assert book.erase(chosen) == 3 - len(left)
    assert sorted(each.text for each in book.read()) == left


def test_a_day_is_bounded(settings: Settings) -> None:
    """A day that is full takes no more, says so and keeps what it has; the next day goes on."""
    small = Book(open_book(settings)._files, max_day_bytes=300)
    small.add([said("a")])
    with pytest.raises(BookFull, match="2026-11-30"):
        small.add([said("b"), said("c")])
    small.add([said("d", MONDAY + DAY_S)])
    assert [each.text for each in small.read()] == ["a", "d"]


def test_a_line_that_is_no_verdict_is_left_alone(
    book: Book, caplog: pytest.LogCaptureFixture
) -> None:
    """A line that somebody broke is named and left out, and neither lost nor in anybody's way."""
    book.add([said("a")])
    name = "2026-11-30.jsonl"
    content, tag = book._files.get(name) or (b"", None)
    book._files.put(name, content + b"{broken\n", tag)
    book.add([said("b")])
    with caplog.at_level(logging.WARNING):
        assert [each.text for each in book.read()] == ["a", "b"]
    assert f"{name}, line 2 is no verdict" in caplog.text
    assert book.erase(lambda _: True) == 2
    assert (book._files.get(name) or (b"",))[0] == b"{broken\n"
