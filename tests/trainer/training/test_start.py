"""What a training starts from: pretrained towers, loaded into the paper's shape."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.processing import character_tokenizer
from audiofuse.core.model.config import TINY
from audiofuse.core.model.mobilenet import MobileNet
from audiofuse.core.settings import Settings
from audiofuse.trainer.training.start import PaperShape, paper_encoder

CHECKPOINT = "mn01_mine.pt"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an audio checkpoint and a BERT, both of known random weights."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(1)
    torch.save(MobileNet(0.1).state_dict(), folder / CHECKPOINT)
    shape = {key: value for key, value in TINY.text.bert.items() if key != "model_type"}
    BertModel(BertConfig(**shape), add_pooling_layer=False).save_pretrained(folder / "bert")
    character_tokenizer().save_pretrained(folder / "bert")
    return folder


@pytest.fixture(scope="module")
def make(pretrained: Path) -> Callable[..., Encoder]:
    """Return what builds the paper's encoder from them."""

    def build(fusion: str = "late", *, separate: bool = False, seed: int = 0) -> Encoder:
        shape = PaperShape(
            str(pretrained / CHECKPOINT),
            pretrained / "bert",
            fusion,
            separate,  # type: ignore[arg-type]
        )
        return paper_encoder(Settings(), shape, seed)

    return build


def test_the_audio_tower_starts_with_the_checkpoint(
    make: Callable[..., Encoder], pretrained: Path
) -> None:
    """Every audio weight is that of the pretrained checkpoint."""
    known = torch.load(pretrained / CHECKPOINT, weights_only=True)
    found = make().model.audio_tower.state_dict()
    assert all(torch.equal(found[name], value) for name, value in known.items())


@pytest.mark.parametrize("fusion", ["late", "mid"])
def test_both_text_towers_start_with_the_bert(
    make: Callable[..., Encoder], pretrained: Path, fusion: str
) -> None:
    """The queries' tower and a separate metadata tower begin with the same pretrained weights."""
    encoder = make(fusion, separate=True)
    known = BertModel.from_pretrained(pretrained / "bert", add_pooling_layer=False).state_dict()
    assert encoder.model.separate_metadata_tower is not None
    for tower in (encoder.model.text_tower, encoder.model.separate_metadata_tower):
        found = tower.bert.state_dict()
        assert all(torch.equal(found[name], value) for name, value in known.items())


def test_it_is_shaped_as_the_authors_do(make: Callable[..., Encoder]) -> None:
    """Items without metadata read the empty text, BERT drops out 0.2, heads are linear to 1024."""
    config = make().config
    assert (config.absent, config.dim, config.audio.head) == ("empty", 1024, "linear")
    assert (config.text.pooling, config.text.head, config.text.max_tokens) == ("cls", "linear", 32)
    bert = config.text.bert
    assert (bert["hidden_dropout_prob"], bert["attention_probs_dropout_prob"]) == (0.2, 0.2)
    assert "transformers_version" not in bert


def test_the_seed_makes_the_heads(make: Callable[..., Encoder]) -> None:
    """What is not pretrained is drawn by the seed, without moving torch's own generator."""
    before = torch.random.get_rng_state()
    first, again, other = (make(seed=seed).model.audio_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)
