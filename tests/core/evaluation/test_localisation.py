"""How well moments are found."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from made_sounds import noise, write_wav

from audiofuse.core.encoder.embeddings import Floats
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import clip_of
from audiofuse.core.evaluation.localisation import (
    GAIN,
    ITEMS,
    MOMENTS,
    Recordings,
    hear_recordings,
    intersection_over_union,
    localise,
)
from audiofuse.core.evaluation.timed import Span, TimedQuery
from audiofuse.core.items import Metadata
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.hearing import Heard
from audiofuse.core.moments.moments import Moment

NAMES = ("quiet", "dog", "cat")  # what each axis of the made-up space means


class _Words:
    """Encodes the words of ``NAMES`` as axes, in place of an encoder."""

    def encode_text(self, texts: Sequence[str]) -> Floats:
        return np.stack([np.eye(3, dtype="f4")[NAMES.index(text)] for text in texts])


def _heard(*windows: str) -> Heard:
    """Return a recording whose windows of 5 s are each of one thing, and the item their mean."""
    vectors = np.stack([np.eye(3, dtype="f4")[NAMES.index(name)] for name in windows])
    item = vectors.mean(0)
    starts = np.arange(len(windows)) * 5.0
    spans = np.stack([starts, starts + 5], axis=1)
    return Heard(5.0 * len(windows), item / np.linalg.norm(item), spans, vectors)


def _encoder() -> Encoder:
    return _Words()  # type: ignore[return-value]


def _dog_in(name: str, start_s: float, end_s: float) -> TimedQuery:
    return TimedQuery("dog", "dog", (Span(name, start_s, end_s),))


def test_one_bark_in_a_long_recording_is_found_by_its_moment() -> None:
    """By its item it comes behind what sounds a little like it all along, by moments first."""
    vague = _heard("quiet", "dog", "cat")
    clear = _heard(*["quiet"] * 20, "dog")
    vague.vectors[1] = [0.6, 0.8, 0]
    recordings = Recordings({"vague": vague, "clear": clear})
    found = localise(_encoder(), recordings, [_dog_in("clear", 101, 104)]).means()
    assert found[ITEMS] == {"mAP@10": 0.5, "R@1": 0, "R@5": 1}
    assert found[MOMENTS] == {
        "mAP@10": 1, "R@1": 1, "R@5": 1, "overlap@1": 1, "overlap@5": 1, "R1@0.5": 1, "R1@0.7": 0,
    }  # fmt: skip


def test_the_first_moment_of_all_recordings_must_overlap() -> None:
    """A moment elsewhere, or in another recording, is wrong, and among five a later one right."""
    recordings = Recordings(
        {"a": _heard("dog", "quiet", "dog", "quiet"), "b": _heard("dog", "cat")}
    )
    here = localise(_encoder(), recordings, [_dog_in("a", 10, 15)]).means()[MOMENTS]
    assert (here["overlap@1"], here["overlap@5"], here["R1@0.5"]) == (0, 1, 0)


def test_each_recording_that_is_meant_counts_for_the_place() -> None:
    """R1@0.5 asks in each of them, and says in how many the first moment fits."""
    recordings = Recordings({"a": _heard("dog", "quiet"), "b": _heard("quiet", "dog")})
    query = TimedQuery("dog", "dog", (Span("a", 0, 5), Span("b", 0, 5)))
    assert localise(_encoder(), recordings, [query]).means()[MOMENTS]["R1@0.5"] == 0.5


def test_the_gain_is_paired_query_by_query() -> None:
    """The difference is one of each query with itself, and says from how many identities."""
    recordings = Recordings({"a": _heard("dog", "quiet"), "b": _heard("quiet", "cat")})
    queries = [_dog_in("a", 0, 5), TimedQuery("cat", "cat", (Span("b", 5, 10),))]
    found = localise(_encoder(), recordings, queries)
    gain = found.intervals()[GAIN]
    assert (gain.value, gain.low, gain.high, gain.identities) == (0, 0, 0, 2)
    assert found.as_dict()["mAP@10 intervals"][GAIN] == [0, 0]


def test_a_recording_of_one_window_is_one_moment() -> None:
    """It is named from its beginning to its end, with the score of its item."""
    short = Heard(4.0, np.array([0, 1, 0], "f4"), np.zeros((0, 2)), np.zeros((0, 3), "f4"))
    found = localise(_encoder(), Recordings({"a": short}), [_dog_in("a", 0, 4)]).means()
    assert found[MOMENTS]["R1@0.7"] == 1


def test_queries_for_what_was_not_heard_are_left_out() -> None:
    """They are not scored as wrong, and a set of nothing else is an error."""
    recordings = Recordings({"a": _heard("dog", "quiet")})
    found = localise(_encoder(), recordings, [_dog_in("a", 0, 5), _dog_in("gone", 0, 5)])
    assert found.means()[MOMENTS]["R@1"] == 1
    with pytest.raises(ConfigurationError, match="no query means a recording"):
        localise(_encoder(), recordings, [_dog_in("gone", 0, 5)])


@pytest.mark.parametrize(
    ("moment", "span", "share"),
    [((0, 10), (0, 10), 1), ((0, 10), (5, 10), 0.5), ((0, 5), (5, 10), 0), ((0, 10), (3, 3), 0)],
)
def test_overlap_is_a_share_of_both_together(
    moment: tuple[float, float], span: tuple[float, float], share: float
) -> None:
    """Equal spans give 1, touching ones and those of no length 0."""
    assert intersection_over_union(Moment(*moment, 1.0), Span("a", *span)) == share


def test_what_cannot_be_heard_is_listed(tmp_path: Path, tiny_encoder: Encoder) -> None:
    """A missing or broken recording is named with its reason, and the rest is heard."""
    write_wav(tmp_path / "good.wav", noise(12))
    (tmp_path / "broken.wav").write_text("no sound")
    names = ("good.wav", "broken.wav", "gone.wav")
    clips = [(name, clip_of(tmp_path / name, name, Metadata())) for name in names]
    found = hear_recordings(tiny_encoder, clips, Grid())
    assert list(found.heard) == ["good.wav"]
    assert found.heard["good.wav"].spans.tolist() == [[0, 5], [5, 12]]
    assert [name for name, _ in found.rejected] == ["broken.wav", "gone.wav"]
