"""What a training leaves: its figures, its page and the model card."""

import json
from pathlib import Path

import pytest
import torch

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.evaluation.clips import Clip, ask_for_captions
from audiofuse.core.items import Metadata
from audiofuse.core.model.config import TINY
from audiofuse.trainer.data.cache import AudioCache
from audiofuse.trainer.data.corpus import Corpus
from audiofuse.trainer.study.results import (
    METRICS,
    REPORT,
    compare_on,
    training_card,
    write_results,
)
from audiofuse.trainer.training.config import FitConfig

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
SPLITS = {"animals/owl.wav": "val", "animals/crow.flac": "distractor", "home/typing.mp3": "train"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Return a sound to learn from, one to find and a distractor."""
    clips = [
        ask_for_captions(
            Clip(
                SOUNDS / name, name, split, Metadata(title=name),
                captions=(f"the sound of {name}",), licence="CC0", collection="mine",
            )
        )
        for name, split in SPLITS.items()
    ]  # fmt: skip
    cache = AudioCache(tmp_path_factory.mktemp("cache"), 600, workers=1)
    return Corpus(clips, cache.prepare(clips).entries)


def test_figures_and_page_are_of_what_was_not_learned(corpus: Corpus, tmp_path: Path) -> None:
    """Every encoder ranks the clips to find, none of those to learn from; both files say so."""
    encoders = {name: Encoder.random(TINY, seed) for seed, name in enumerate(("mine", "start"))}
    systems = compare_on(corpus, encoders, torch.device("cpu"))
    held = [clip.split for clip in systems["mine"].gallery.clips]
    assert held == ["val", "distractor"]
    assessment = write_results(tmp_path, "mine", systems, corpus)
    assert json.loads((tmp_path / METRICS).read_text()) == assessment.as_dict()
    assert assessment.systems == ["mine", "start"]
    page = (tmp_path / REPORT).read_text()
    assert "1 sentences for 2 other sounds" in page
    assert "1 sounds" in page


def test_the_card_tells_what_it_was_trained_on(corpus: Corpus) -> None:
    """Sounds by collection and licence, and every option of the training, are in the card."""
    card = training_card("mine", corpus.train, FitConfig(epochs=7))
    assert "Trained on 1 sounds" in card
    assert "mine (1)" in card
    assert "CC0 (1)" in card
    assert "- epochs: 7" in card
    assert all(f"- {name}: " in card for name in FitConfig.model_fields)
