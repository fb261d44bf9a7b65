"""Teachers: a CLAP's similarities of a batch, and how they are learned."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    ClapTextConfig,
    RobertaTokenizer,
)

from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import TINY
from audiofuse.trainer.data.batches import Example, cut
from audiofuse.trainer.training.config import FitConfig
from audiofuse.trainer.training.loss import taught_loss
from audiofuse.trainer.training.step import Learner, Precision, contrastive_step
from audiofuse.trainer.training.teacher import Teacher, Teaching, load_teacher

WORDS = ("a dog barks", "rain", "a bell rings", "wind")
FLOAT32 = Precision("cpu", bf16=False)


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a CLAP as the hub has them, of random weights and as small as can be."""
    folder = tmp_path_factory.mktemp("clap")
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyzĠ", 5)}
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    tokenizer = RobertaTokenizer(vocab=special | letters, merges=[])
    config = ClapConfig(
        text_config=ClapTextConfig(
            vocab_size=len(special | letters), hidden_size=8, num_hidden_layers=1,
            num_attention_heads=1, intermediate_size=8,
        ).to_dict(),
        audio_config=ClapAudioConfig(
            depths=[1, 1], num_attention_heads=[1, 1], hidden_size=16, patch_embeds_hidden_size=8,
            num_mel_bins=64, spec_size=256, window_size=8,
        ).to_dict(),
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(0)
    ClapModel(config).save_pretrained(folder)
    hears = ClapFeatureExtractor(truncation="rand_trunc")
    ClapProcessor(hears, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(clap: Path) -> Teacher:
    """Return it as a teacher."""
    return load_teacher(str(clap), "cpu")


def _examples(seconds: float = 1.0) -> list[Example]:
    chance = np.random.default_rng(0)
    size = round(seconds * SAMPLE_RATE)
    sounds = [chance.standard_normal(size).astype(np.float32) * 0.1 for _ in WORDS]
    return [
        Example(cut(sound), f"title {row}", WORDS[row], row) for row, sound in enumerate(sounds)
    ]


def test_a_teacher_hears_and_reads_what_it_is_given(teacher: Teacher) -> None:
    """Sounds of any length and sentences have unit vectors, each its own, and always the same."""
    for seconds in (0.5, 11.0):  # one window, and two
        sounds, sentences = teacher.vectors(_examples(seconds))
        assert sounds.shape == sentences.shape == (len(WORDS), 8)
        for vectors in (sounds, sentences):
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(WORDS)))
            assert len({tuple(vector.tolist()) for vector in vectors}) == len(WORDS)
        again, _ = teacher.vectors(_examples(seconds))
        torch.testing.assert_close(again, sounds, rtol=0, atol=0)
    assert teacher.scale == pytest.approx(1 / 0.07, rel=0.01)


def test_the_loss_is_nothing_where_a_teacher_is_agreed_with() -> None:
    """It is 0 for the teacher's own similarities, more for others, and its gradient leads there."""
    chance = torch.Generator().manual_seed(0)
    items, sentences = torch.randn(2, 5, 8, generator=chance)
    temperature = torch.tensor(0.05)
    unit = torch.nn.functional.normalize
    taught = unit(items) @ unit(sentences).T / temperature
    assert float(taught_loss(items, sentences, taught, temperature)) == pytest.approx(0, abs=1e-6)
    ours = torch.randn(5, 8, generator=chance).requires_grad_()
    before = taught_loss(ours, sentences, taught, temperature)
    (gradient,) = torch.autograd.grad(before, ours)
    after = taught_loss(ours - 0.01 * gradient, sentences, taught, temperature)
    assert 0 < after.item() < before.item()


def test_the_step_learns_from_the_mean_of_its_teachers(teacher: Teacher) -> None:
    """In chunks as in one piece; two of the same are one, and a heavier one moves more."""
    learner = Learner(Encoder.random(TINY, seed=0), 0.05, learned=False)

    def gradient(teachers: list[Teacher], weight: float, chunk: int) -> torch.Tensor:
        learner.zero_grad()
        teaching = Teaching(teachers, weight) if teachers else None
        contrastive_step(learner, _examples(), chunk, 7, FLOAT32, teaching)
        grads = [each.grad.flatten() for each in learner.parameters() if each.grad is not None]
        return torch.cat(grads)

    alone, one = gradient([], 1, 4), gradient([teacher], 1, 4)
    close = {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(gradient([teacher], 1, 3), one, **close)
    torch.testing.assert_close(gradient([teacher, teacher], 1, 4), one, **close)
    torch.testing.assert_close(gradient([teacher], 3, 4) - alone, 3 * (one - alone), **close)
    assert not torch.allclose(one, alone, **close)


@pytest.mark.parametrize("lacking", ["nothing there", "no clap"])
def test_what_is_no_teacher_is_named(tmp_path: Path, lacking: str) -> None:
    """A folder without a model, or with another kind of it, is one clear error."""
    if lacking == "no clap":
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigurationError, match=r"--teacher.*" + tmp_path.name):
        load_teacher(str(tmp_path), "cpu")


def test_runs_without_a_teacher_go_on_as_before() -> None:
    """What a run was asked for names teachers only where there are some."""
    assert "teacher" not in FitConfig().identity()
    assert FitConfig(teacher=["a"]).identity()["teacher"] == ["a"]
