"""Retrieval metrics and the evaluation protocol."""

import json
from pathlib import Path

import pytest
import pytrec_eval
import torch

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.evaluation import evaluation
from audiofuse.core.evaluation.clips import Clip, Query, read_manifest, select_queries
from audiofuse.core.evaluation.evaluation import (
    QueryScores,
    Relevance,
    blank_metadata,
    encode_clips,
    evaluate,
    judge,
    judge_hybrid,
    score,
)
from audiofuse.core.items import Metadata
from audiofuse.core.model.config import TINY

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"


def test_metrics_of_a_known_ranking() -> None:
    """Two relevant items at ranks 1 and 3 give AP (1 + 2/3) / 2 and R@1 of one half."""
    scores = score(torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[True, False, True]]))
    metrics = scores.mean()
    assert metrics.mean_average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.mean_reciprocal_rank == 1
    assert metrics.recall == pytest.approx({1: 0.5, 5: 1.0, 10: 1.0})


def test_a_relevant_item_behind_the_cutoff_counts_for_the_reciprocal_rank_only() -> None:
    """A relevant item at rank 11 gives no precision and no recall, but a rank of 11."""
    relevant = torch.zeros(1, 12, dtype=torch.bool)
    relevant[0, 10] = True
    metrics = score(torch.arange(12, 0, -1.0).unsqueeze(0), relevant).mean()
    assert metrics.as_dict() == {
        "mAP@10": 0,
        "R@1": 0,
        "R@5": 0,
        "R@10": 0,
        "MRR": pytest.approx(1 / 11),
    }


def test_equal_similarities_keep_the_order_of_the_gallery() -> None:
    """Among 40 items that are all alike, the fourth is at rank 4."""
    relevant = torch.zeros(1, 40, dtype=torch.bool)
    relevant[0, 3] = True
    assert score(torch.zeros(1, 40), relevant).reciprocal_rank.tolist() == [0.25]


def _random_rankings() -> tuple[torch.Tensor, torch.Tensor]:
    """Return similarity and relevance of 50 queries to 40 items, 1 to 10 relevant to each."""
    generator = torch.Generator().manual_seed(0)
    similarity, chance = (torch.rand(50, 40, generator=generator) for _ in range(2))
    wanted = torch.randint(1, 11, (50, 1), generator=generator)
    return similarity, chance.argsort(dim=1).argsort(dim=1) < wanted


def test_random_rankings_agree_with_a_naive_computation() -> None:
    """On random rankings the average precision is the textbook formula's, item by item."""
    similarity, relevant = _random_rankings()
    found = score(similarity, relevant).average_precision.tolist()
    for value, scores, wanted in zip(found, similarity.tolist(), relevant.tolist(), strict=True):
        ranked = sorted(range(40), key=lambda item: -scores[item])[:10]
        hits, precisions = 0, []
        for rank, item in enumerate(ranked, 1):
            if wanted[item]:
                hits += 1
                precisions.append(hits / rank)
        assert value == pytest.approx(sum(precisions) / min(10, sum(wanted)))


def test_random_rankings_agree_with_trec_eval() -> None:
    """Every metric of every query is that of trec_eval, the yardstick of information retrieval.

    No query has more than ten relevant items, since trec_eval divides by all of them where we
    divide by at most ten.
    """
    similarity, relevant = _random_rankings()
    scores = score(similarity, relevant)
    names = [f"{item:02d}" for item in range(40)]
    judged = {
        str(row): dict(zip(names, map(int, each), strict=True))
        for row, each in enumerate(relevant.tolist())
    }
    run = {
        str(row): dict(zip(names, each, strict=True))
        for row, each in enumerate(similarity.tolist())
    }
    measures = {"map_cut.10", "recip_rank", "recall.1,5,10"}
    expected = pytrec_eval.RelevanceEvaluator(judged, measures).evaluate(run)
    ours = {
        "map_cut_10": scores.average_precision,
        "recip_rank": scores.reciprocal_rank,
        "recall_1": scores.recall[1],
        "recall_5": scores.recall[5],
        "recall_10": scores.recall[10],
    }
    for name, values in ours.items():
        theirs = [expected[str(row)][name] for row in range(50)]
        assert values.tolist() == pytest.approx(theirs), name


def test_scores_of_queries_are_joined_selected_and_averaged_by_query() -> None:
    """Rows keep their place in every metric, and an average is one of each query with itself."""
    similarity, relevant = _random_rankings()
    whole = score(similarity, relevant)
    parts = [score(similarity[rows], relevant[rows]) for rows in (slice(0, 20), slice(20, 50))]
    joined = QueryScores.concatenate(parts)
    assert joined.select([3, 30]).recall[5].tolist() == whole.recall[5][[3, 30]].tolist()
    assert joined.mean() == whole.mean()
    other = score(-similarity, relevant)
    averaged = QueryScores.average([whole, other]).reciprocal_rank
    torch.testing.assert_close(averaged, (whole.reciprocal_rank + other.reciprocal_rank) / 2)


def _manifest(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ROWS: list[dict[str, object]] = [
    {
        "audio": str(SOUNDS / "animals/owl.wav"),
        "identity": "owl",
        "split": "val",
        "title": "owl",
        "queries": [{"text": "an owl"}],
    },
    {
        "audio": str(SOUNDS / "animals/crow.flac"),
        "identity": "owl",
        "split": "val",
        "queries": [{"text": "an owl"}],
    },
    {"audio": str(SOUNDS / "ATTRIBUTION.md"), "split": "train"},
]
OTHERS: list[dict[str, object]] = [
    {"audio": str(SOUNDS / "animals/owl.wav"), "identity": "owl", "title": "owl"},
    {"audio": str(SOUNDS / "animals/crow.flac"), "identity": "crow", "title": "crow"},
]


def test_a_clip_that_cannot_be_decoded_is_listed(tmp_path: Path, tiny_encoder: Encoder) -> None:
    """A broken file is left out of the gallery with its reason, and the rest is scored."""
    clips = read_manifest(_manifest(tmp_path, ROWS))
    gallery = encode_clips(tiny_encoder, clips)
    assert [(clip.path.name, error.reason) for clip, error in gallery.rejected] == [
        ("ATTRIBUTION.md", "not_audio")
    ]
    metrics = evaluate(tiny_encoder, gallery, select_queries(clips, "val"))
    assert (
        metrics["audio only"].recall[10] == 1
    )  # both clips are relevant and nothing else is there


def test_blanking_is_reproducible(tmp_path: Path, tiny_encoder: Encoder) -> None:
    """All metadata blanked leaves nothing to the hybrid but the audio."""
    clips = read_manifest(_manifest(tmp_path, ROWS))
    gallery = encode_clips(tiny_encoder, clips)
    metrics = evaluate(tiny_encoder, blank_metadata(gallery, 1.0), select_queries(clips, "val"))
    assert metrics["hybrid"] == metrics["audio only"]


def test_a_batch_of_queries_is_scored_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many queries are compared with the gallery at a time changes no score."""
    generator = torch.Generator().manual_seed(0)
    asked, items = (torch.randn(count, 8, generator=generator) for count in (5, 4))
    relevant = Relevance(torch.tensor([[0], [1], [2], [2], [1]]), torch.tensor([2, 0, 1, 2]))
    together = evaluation._score_cosines(asked, items, relevant)
    monkeypatch.setattr(evaluation, "QUERIES_PER_BATCH", 2)
    batched = evaluation._score_cosines(asked, items, relevant)
    assert batched.reciprocal_rank.tolist() == together.reciprocal_rank.tolist()
    assert batched.average_precision.tolist() == together.average_precision.tolist()


def test_a_query_for_what_is_not_there_is_an_error(tmp_path: Path, tiny_encoder: Encoder) -> None:
    """A query that means no clip of the gallery is named instead of scored."""
    gallery = encode_clips(tiny_encoder, read_manifest(_manifest(tmp_path, OTHERS)))
    with pytest.raises(ConfigurationError, match="'bat' could be decoded"):
        judge(tiny_encoder, gallery, [Query("a bat", "", "bat")])


def test_an_item_with_nothing_to_find_it_by_is_not_found_first(tmp_path: Path) -> None:
    """To an encoder that reads only metadata, an item without any is worse than the right one."""
    encoder = Encoder.random(TINY.model_copy(update={"fusion": "metadata"}), seed=0)
    with torch.no_grad():  # an untrained tower says nearly the same of all: spread that out
        mean = torch.from_numpy(encoder.encode_text(["owl", "crow", "bat"]).mean(0))
        encoder.model.text_tower.project.bias -= mean
    rows = [*OTHERS, OTHERS[0] | {"identity": "nothing", "title": ""}]
    gallery = encode_clips(encoder, read_manifest(_manifest(tmp_path, rows)))
    # Asked by its own words, the right item has a cosine of 1.
    scores = judge(encoder, gallery, [Query("owl", "", "owl"), Query("crow", "", "crow")])
    assert scores["hybrid"].reciprocal_rank.tolist() == [1, 1]


def test_a_tower_that_is_only_fused_ranks_nothing_alone(tmp_path: Path) -> None:
    """Mid fusion with a separate metadata tower is judged, but not by metadata alone."""
    changes = {"fusion": "mid", "metadata": TINY.text}
    encoder = Encoder.random(TINY.model_copy(update=changes), seed=0)
    gallery = encode_clips(encoder, read_manifest(_manifest(tmp_path, OTHERS)))
    scores = judge(encoder, gallery, [Query("owl", "", "owl")])
    assert set(scores) == {"audio only", "hybrid"}


def test_hybrid_alone_is_what_all_three_give(tmp_path: Path, tiny_encoder: Encoder) -> None:
    """The single ranking of ``judge_hybrid`` scores as the hybrid one of ``judge``."""
    gallery = encode_clips(tiny_encoder, read_manifest(_manifest(tmp_path, OTHERS)))
    queries = [Query(text, "", text.split()[-1]) for text in ("an owl", "a crow")]
    alone = judge_hybrid(tiny_encoder, gallery, queries)
    together = judge(tiny_encoder, gallery, queries)["hybrid"]
    assert alone.reciprocal_rank.tolist() == together.reciprocal_rank.tolist()


def test_words_that_say_nothing_are_no_metadata(tmp_path: Path, tiny_encoder: Encoder) -> None:
    """Metadata of punctuation alone is none when it is ranked alone, as when it is fused."""
    rows = [OTHERS[0] | {"title": "?!"}, *OTHERS[1:]]
    gallery = encode_clips(tiny_encoder, read_manifest(_manifest(tmp_path, rows)))
    words = evaluation._metadata_vectors(tiny_encoder, [c.metadata.text for c in gallery.clips])
    assert words.any(dim=1).tolist() == [False, *[True] * (len(rows) - 1)]


def test_relevance_is_made_row_by_row() -> None:
    """Which clips a query means, and how many, is known without a table of queries by clips."""
    clips = [Clip(Path(name), name[0], "val", Metadata()) for name in ("a1", "b1", "a2")]
    relevant = Relevance.of([Query("x", "", "b"), Query("y", "", "a")], clips)
    assert relevant.counts.tolist() == [1, 2]
    assert relevant.rows(slice(1, 2)).tolist() == [[True, False, True]]


def test_a_query_may_mean_several_sounds() -> None:
    """Further identities are as relevant as the first; those that are not there do not count."""
    clips = [Clip(Path(name), name[0], "val", Metadata()) for name in ("a1", "b1", "a2", "c1")]
    queries = [Query("x", "", "gone", ("b", "a")), Query("y", "", "c")]
    relevant = Relevance.of(queries, clips)
    assert relevant.counts.tolist() == [3, 1]
    assert relevant.rows(slice(0, 2)).tolist() == [
        [True, True, True, False],
        [False, False, False, True],
    ]


def test_precision_is_cut_off_where_it_is_asked() -> None:
    """With a cutoff of 16, a right sound at rank 12 counts for the precision, and is named so."""
    similarity = torch.arange(20, 0, -1, dtype=torch.float)[None]
    relevant = torch.zeros(1, 20, dtype=torch.bool)
    relevant[0, [0, 11, 19]] = True
    scores = score(similarity, relevant, cutoff=16)
    assert scores.mean().as_dict()["mAP@16"] == pytest.approx((1 + 2 / 12) / 3)
    assert score(similarity, relevant).mean().as_dict()["mAP@10"] == pytest.approx(1 / 3)
    assert QueryScores.concatenate([scores, scores]).cutoff == 16
