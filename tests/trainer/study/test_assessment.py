"""Comparing encoders: on which slices, how certain, and what counts as a difference."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from audiofuse.core.audio.recording import open_recording
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation.clips import Clip, Query, queries_of
from audiofuse.core.evaluation.evaluation import (
    QueryScores,
    Relevance,
    blank_metadata,
    encode_clips,
    evaluate,
    judge,
    score,
)
from audiofuse.core.items import Metadata
from audiofuse.core.model.config import TINY
from audiofuse.trainer.data.cache import Entry
from audiofuse.trainer.data.gallery import encode_cached
from audiofuse.trainer.study.assessment import (
    Assessment,
    Slice,
    System,
    assess,
    by_chance,
    compare,
    spread,
)

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"


def _clip(name: str, split: str, collection: str, *queries: tuple[str, str]) -> Clip:
    path = SOUNDS / name
    return Clip(
        path=path,
        identity=path.stem,
        split=split,
        metadata=Metadata(title=path.stem),
        queries=tuple(Query(text, kind, path.stem) for text, kind in queries),
        collection=collection,
    )


CLIPS = [
    _clip("animals/owl.wav", "val", "birds", ("an owl", "partial"), ("hooting", "paraphrase")),
    _clip("animals/crow.flac", "test", "birds", ("a crow", "partial")),
    _clip("animals/duck-quack.wav", "val", "pond", ("a duck", "partial")),
    _clip("home/typing.mp3", "distractor", "office"),
]


@pytest.fixture(scope="module")
def systems() -> dict[str, System]:
    """Return two encoders of different weights that embedded the same four clips."""
    encoders = {name: Encoder.random(TINY, seed) for seed, name in enumerate(("trained", "start"))}
    return {
        name: System(encoder, encode_clips(encoder, CLIPS)) for name, encoder in encoders.items()
    }


@pytest.fixture(scope="module")
def assessment(systems: dict[str, System]) -> Assessment:
    """Return the assessment of both for all queries."""
    return assess(systems, queries_of(CLIPS))


def test_queries_are_those_of_a_split_or_of_all_clips() -> None:
    """Without a split every clip's queries are asked, also those of a clip to test on."""
    assert [query.text for query in queries_of(CLIPS, "val")] == ["an owl", "hooting", "a duck"]
    assert {query.text for query in queries_of(CLIPS)} == {"an owl", "hooting", "a duck", "a crow"}


def test_each_slice_asks_its_own_queries(assessment: Assessment) -> None:
    """Paraphrases and collections are parts of the queries; a collection without any is none."""
    asked = {name: sorted(each.identities) for name, each in assessment.slices.items()}
    everything = ["crow", "duck-quack", "owl", "owl"]
    assert asked == {
        "all": everything,
        "without metadata": everything,
        "half blanked": everything,
        "paraphrases": ["owl"],
        "from birds": ["crow", "owl", "owl"],
        "from pond": ["duck-quack"],
    }


def test_a_part_that_is_everything_is_no_slice(systems: dict[str, System]) -> None:
    """A collection that holds all queries is not shown beside them once more."""
    owl = [query for query in queries_of(CLIPS) if query.kind == "paraphrase"]
    assert list(assess(systems, owl).slices) == ["all", "without metadata", "half blanked"]


def test_the_conditions_are_those_of_the_evaluation(
    systems: dict[str, System], assessment: Assessment
) -> None:
    """Each condition scores as blanking does: nothing, everything, or the mean of three halves."""
    system, queries = systems["start"], assessment.queries
    nothing, everything, *halves = (
        judge(system.encoder, blank_metadata(system.gallery, blank, seed), queries)[
            "hybrid"
        ].reciprocal_rank
        for blank, seed in [(0, 0), (1, 0), (0.5, 0), (0.5, 1), (0.5, 2)]
    )
    found = {
        name: assessment.slices[name].scores["start"]["hybrid"].reciprocal_rank.tolist()
        for name in ("all", "without metadata", "half blanked")
    }
    assert found["all"] == nothing.tolist()
    assert found["without metadata"] == everything.tolist()
    assert found["half blanked"] == pytest.approx(torch.stack(halves).mean(0).tolist())
    assert nothing.tolist() != everything.tolist()


def test_a_part_keeps_the_scores_of_its_queries(assessment: Assessment) -> None:
    """A slice by collection holds what all queries' ranking gave to its own."""
    row = [query.identity for query in assessment.queries].index("duck-quack")
    whole = assessment.slices["all"].scores["trained"]["metadata only"]
    part = assessment.slices["from pond"].scores["trained"]["metadata only"]
    assert part.average_precision.tolist() == [whole.average_precision[row]]


def test_it_is_told_as_json(systems: dict[str, System], assessment: Assessment) -> None:
    """The numbers survive JSON under plain names and are those of ``evaluate``."""
    told = json.loads(json.dumps(assessment.as_dict()))
    everything = told["slices"]["all"]
    assert (told["clips"], everything["queries"], everything["identities"]) == (4, 4, 3)
    assert set(everything["systems"]) == {"trained", "start"}
    system = systems["trained"]
    means = evaluate(system.encoder, system.gallery, assessment.queries)
    for ranked, metrics in means.items():
        row = everything["systems"]["trained"][ranked]
        low, high = row.pop("mAP@10 interval")
        assert row == metrics.as_dict()
        assert low <= row["mAP@10"] <= high
    assert set(everything["random"]) == {"mAP@10", "R@1", "R@5", "R@10", "MRR"}


def test_systems_that_embedded_different_clips_are_not_compared(systems: dict[str, System]) -> None:
    """A gallery of other clips is refused, for its ranking is another task."""
    encoder = systems["start"].encoder
    other = System(encoder, encode_clips(encoder, CLIPS[:3]))
    with pytest.raises(ConfigurationError, match="not embedded the same clips"):
        assess(systems | {"start": other}, queries_of(CLIPS, "val"))


def test_without_a_query_there_is_nothing_to_assess(systems: dict[str, System]) -> None:
    """A split that asks nothing is an error that says so."""
    with pytest.raises(ConfigurationError, match="no query"):
        assess(systems, queries_of(CLIPS, "distractor"))


@pytest.mark.parametrize("items", [15, 6])
def test_chance_is_the_mean_of_random_rankings(items: int) -> None:
    """What chance is expected to score is what very many random rankings score on average."""
    generator = torch.Generator().manual_seed(0)
    # Of three identities with 1, 2 and all other clips.
    clips = torch.tensor([0, 1, 1, *[2] * (items - 3)])
    relevant = Relevance(torch.tensor([[0], [1], [2], [1]]), clips)
    expected = by_chance(relevant)
    for row, wanted in enumerate(relevant.rows(slice(None))):
        similarity = torch.rand(20_000, items, generator=generator)
        drawn = score(similarity, wanted.expand_as(similarity)).mean().as_dict()
        assert expected.select([row]).mean().as_dict() == pytest.approx(drawn, abs=0.01)


def _scores(precisions: list[float]) -> QueryScores:
    values = torch.tensor(precisions, dtype=torch.double)
    return QueryScores(values, values, dict.fromkeys((1, 5, 10), values))


def _slice(identities: list[str], **systems: list[float]) -> Slice:
    chance = _scores([0.0] * len(identities))
    scores = {name: {"hybrid": _scores(each)} for name, each in systems.items()}
    return Slice(identities, scores, chance)


def test_independent_queries_have_the_interval_of_the_textbook() -> None:
    """One query for each of 400 sounds gives 1.96 standard errors to either side."""
    values = np.random.default_rng(0).random(400).tolist()
    found = _slice([str(number) for number in range(400)], ours=values).estimate("ours")
    error = np.std(values) / np.sqrt(400)
    assert found.value == pytest.approx(np.mean(values))
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.2 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.2 * error)


def test_queries_for_one_sound_count_as_one() -> None:
    """Asking each of 20 sounds 20 times, always alike, is no surer than asking it once."""
    right = [float(number % 2) for number in range(20)]
    names = [str(number) for number in range(20)]
    once = _slice(names, ours=right).estimate("ours")
    often = _slice(names * 20, ours=right * 20).estimate("ours")
    assert often == once
    assert often.high - often.low > 0.35


def test_a_small_but_steady_difference_is_clear() -> None:
    """Systems are compared query by query: what is hard for both says nothing about either."""
    values = np.random.default_rng(0).random(50)
    names = [str(number) for number in range(50)]
    each = _slice(names, ours=(values + 0.01).tolist(), theirs=values.tolist())
    ours, theirs = each.estimate("ours"), each.estimate("theirs")
    assert ours.low < theirs.high  # the intervals overlap, yet
    difference = each.compare("ours", "theirs")
    assert (difference.value, difference.low) == pytest.approx((0.01, 0.01))
    assert difference.verdict == "better"
    assert each.compare("theirs", "ours").verdict == "worse"


def test_chance_differences_are_not_clear() -> None:
    """Two systems that win in turns differ by nothing that can be told."""
    names = [str(number) for number in range(20)]
    first = [float(number % 2) for number in range(20)]
    each = _slice(names, ours=first, theirs=[1 - value for value in first])
    assert each.compare("ours", "theirs").verdict == "no clear difference"


def test_few_sounds_allow_no_verdict() -> None:
    """From nine sounds nothing is concluded, however clear it looks; ten are enough."""
    names = [str(number) for number in range(10)]
    each = _slice(names[:9], ours=[1.0] * 9, theirs=[0.0] * 9)
    assert each.compare("ours", "theirs").verdict == "too few sounds to tell"
    each = _slice(names, ours=[1.0] * 10, theirs=[0.0] * 10)
    assert each.compare("ours", "theirs").verdict == "better"


def test_systems_are_compared_on_each_slice(assessment: Assessment) -> None:
    """The comparison of two systems has the same slices, each with its own difference."""
    differences = compare(assessment, "trained", "start")
    assert list(differences) == list(assessment.slices)
    told = assessment.as_dict()["slices"]["from birds"]["systems"]
    expected = told["trained"]["hybrid"]["mAP@10"] - told["start"]["hybrid"]["mAP@10"]
    assert differences["from birds"].value == pytest.approx(expected)


def test_spread_is_mean_and_deviation_over_seeds() -> None:
    """Several seeds' assessments are joined number by number."""
    runs = [Assessment([], 3, {"all": _slice(["a"], ours=[value])}) for value in (0.2, 0.4, 0.9)]
    joined = spread(runs)["all"]["ours"]["hybrid"]["mAP@10"]
    assert joined == pytest.approx({"mean": 0.5, "deviation": np.std([0.2, 0.4, 0.9], ddof=1)})


def test_spread_refuses_assessments_of_other_systems() -> None:
    """What one seed's assessment has and another's lacks is an error."""
    runs = [Assessment([], 1, {"all": _slice(["a"], **{name: [1.0]})}) for name in ("ours", "x")]
    with pytest.raises(ConfigurationError, match="different shape"):
        spread(runs)


def test_the_cache_is_embedded_like_the_files(tmp_path: Path, tiny_encoder: Encoder) -> None:
    """A decoded clip is embedded as its file is, to int16's precision; what is not there is not."""
    clip, missing = _clip("music/tabla-loop.m4a", "val", "drums"), CLIPS[0]  # 10.7 s: two windows
    with open_recording(clip.path, 60) as recording:
        samples = np.concatenate(list(recording.windows()))
    file = tmp_path / "clip.npy"
    np.save(file, np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16))
    cached = encode_cached(
        tiny_encoder, [missing, clip], {clip.path: Entry(file, samples.size, "")}
    )
    (expected,) = encode_clips(tiny_encoder, [clip]).embeddings
    assert cached.clips == [clip]
    difference = np.linalg.norm(cached.embeddings[0].pooled - expected.pooled)
    assert (
        difference / np.linalg.norm(expected.pooled) < 0.01
    )  # without the last 0.7 s it would be 0.04
