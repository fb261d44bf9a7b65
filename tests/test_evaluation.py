"""Retrieval metrics and the evaluation protocol."""

import json
from pathlib import Path

import pytest
import torch

from core.clips import read_manifest, select_queries
from core.encoder import Encoder
from core.evaluation import evaluate, hear_all, score

SOUNDS = Path(__file__).parent.parent / "examples" / "sounds"


def test_metrics_of_a_known_ranking() -> None:
    """Two relevant items at ranks 1 and 3 give AP (1 + 2/3) / 2 and R@1 of one half."""
    metrics = score(torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[True, False, True]]))
    assert metrics.mean_average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.recall == pytest.approx({1: 0.5, 5: 1.0, 10: 1.0})


def test_a_relevant_item_behind_the_cutoff_counts_nothing() -> None:
    """A relevant item at rank 11 gives no precision and no recall."""
    relevant = torch.zeros(1, 12, dtype=torch.bool)
    relevant[0, 10] = True
    metrics = score(torch.arange(12, 0, -1.0).unsqueeze(0), relevant)
    assert (metrics.mean_average_precision, metrics.recall[10]) == (0, 0)


def test_random_rankings_agree_with_a_naive_computation() -> None:
    """On random rankings the metrics equal the textbook formula computed item by item."""
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(50, 40, generator=generator)
    relevant = torch.rand(50, 40, generator=generator) < 0.1
    relevant[:, 0] = True
    metrics = score(similarity, relevant)
    expected = []
    for scores, wanted in zip(similarity.tolist(), relevant.tolist(), strict=True):
        ranked = sorted(range(40), key=lambda item: -scores[item])[:10]
        found, precisions = 0, []
        for rank, item in enumerate(ranked, 1):
            if wanted[item]:
                found += 1
                precisions.append(found / rank)
        expected.append(sum(precisions) / min(10, sum(wanted)))
    assert metrics.mean_average_precision == pytest.approx(sum(expected) / 50)


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


def test_a_clip_that_cannot_be_heard_is_listed(tmp_path: Path, tiny_encoder: Encoder) -> None:
    """A broken file is left out of the gallery with its reason, and the rest is scored."""
    clips = read_manifest(_manifest(tmp_path, ROWS))
    gallery = hear_all(tiny_encoder, clips)
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
    gallery = hear_all(tiny_encoder, clips)
    metrics = evaluate(tiny_encoder, gallery, select_queries(clips, "val"), blank=1.0)
    assert metrics["hybrid"] == metrics["audio only"]
