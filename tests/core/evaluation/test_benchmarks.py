"""Benchmarks: which clips are ranked and which captions ask, and DCASE 2025's relevant sounds."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from releases import AUDIOCAPS_HEAD, CLOTHO_HEAD

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation import benchmarks
from audiofuse.core.evaluation.benchmarks import read_benchmark
from audiofuse.core.evaluation.clips import Query

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL, CROW = SOUNDS / "animals/owl.wav", SOUNDS / "animals/crow.flac"
RELEVANT = "query,audio_filenames\n\"An owl, far\",\"['crow.flac', 'owl 2.wav', 'gone.wav']\"\n"


@pytest.fixture
def evaluation(clotho: Path, put: Callable[..., None]) -> Path:
    """Return a ClothoV2 whose evaluation split has two sounds, and names one that is gone."""
    put(CROW, clotho / "evaluation/crow.flac")
    rows = ("owl 2.wav,a,b,b,d,e", "crow.flac,f,g,h,i,j", "gone.wav,k,l,m,n,o")
    (clotho / "clotho_captions_evaluation.csv").write_text(CLOTHO_HEAD + "\n".join(rows))
    return clotho


@pytest.mark.parametrize("split", ["evaluation", "test"])
def test_a_split_is_ranked_alone(evaluation: Path, split: str) -> None:
    """Each caption of the split asks for its one clip, equal ones too, among the split's clips."""
    benchmark = read_benchmark(evaluation, split)
    assert benchmark is not None
    assert [clip.path.name for clip in benchmark.clips] == ["owl 2.wav", "crow.flac"]
    asked = [(query.text, query.identity[-5:], query.others) for query in benchmark.queries]
    assert asked == [
        *((text, "2.wav", ()) for text in "abbde"),
        *((text, ".flac", ()) for text in "fghij"),
    ]
    assert "2 clips and 10 queries; the benchmark has 1,045 and 5,225" in benchmark.lacking


def test_a_whole_benchmark_lacks_nothing(evaluation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all clips and captions are there, no word is said of it."""
    monkeypatch.setitem(benchmarks.WHOLE, ("clotho", "test"), (2, 10))
    benchmark = read_benchmark(evaluation, "evaluation")
    assert benchmark is not None
    assert not benchmark.lacking


def test_audiocaps_asks_each_caption(put: Callable[..., None], audiocaps: Path) -> None:
    """Rows of one clip that say the same are queries each: the benchmark counts 4,875."""
    row = "1,r1nicOVtvkQ,130,Water\n"
    (audiocaps / "test.csv").write_text(AUDIOCAPS_HEAD + row + row)
    put(OWL, audiocaps / "test/r1nicOVtvkQ.wav")
    benchmark = read_benchmark(audiocaps, "test")
    assert benchmark is not None
    assert [query.text for query in benchmark.queries] == ["Water", "Water"]
    assert "the benchmark has 975 and 4,875" in benchmark.lacking


def test_relevant_sounds_lie_beside_the_tables(evaluation: Path) -> None:
    """A caption of DCASE 2025's table means every sound that it names, in the evaluation alone."""
    (evaluation / "metadata_eval.csv").write_text(RELEVANT)
    benchmark = read_benchmark(evaluation, "evaluation")
    assert benchmark is not None
    crow, owl, gone = (f"clotho/test/{name}" for name in ("crow.flac", "owl 2.wav", "gone.wav"))
    assert benchmark.relevance == [Query("An owl, far", "caption", crow, (owl, gone))]
    other = read_benchmark(evaluation, "development")
    assert other is not None
    assert not other.relevance


@pytest.mark.parametrize(
    ("names", "wrong"),
    [
        ("crow.flac", "audio_filenames is no list"),
        ("'crow.flac'", "audio_filenames is no list of names"),
        ("[]", "audio_filenames is no list of names"),
        ("['an owl.wav']", "'an owl.wav' is no sound of the evaluation split"),
    ],
)
def test_other_relevance_is_refused(evaluation: Path, names: str, wrong: str) -> None:
    """A table of another form, or of other sounds, is named with the line."""
    with (evaluation / "metadata_eval.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("query", "audio_filenames"), ("An owl", names)])
    with pytest.raises(ConfigurationError, match=f"metadata_eval.csv, line 2: {wrong}"):
        read_benchmark(evaluation, "evaluation")


def test_what_is_no_split_of_a_benchmark_is_refused(evaluation: Path, tmp_path: Path) -> None:
    """A wrong name and a split without sounds are told apart; other folders are no benchmark."""
    with pytest.raises(ConfigurationError, match="no split 'eval': there are development"):
        read_benchmark(evaluation, "eval")
    with pytest.raises(ConfigurationError, match="no sounds of the split 'validation'"):
        read_benchmark(evaluation, "validation")
    assert read_benchmark(tmp_path / "elsewhere", "eval") is None
