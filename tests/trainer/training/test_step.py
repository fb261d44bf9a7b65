"""One training step: the gradient of the whole batch, whatever it is cut into."""

import copy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from audiofuse.core.encoder.encoder import TINY, Encoder
from audiofuse.trainer.data.batches import Example, cut
from audiofuse.trainer.training.augment import Augmentation, AugmentedFrontEnd
from audiofuse.trainer.training.loss import nt_xent
from audiofuse.trainer.training.step import Learner, Precision, contrastive_step, sum_gradients

FLOAT32 = Precision("cpu", bf16=False)
SENTENCES = ("a dog barks", "rain", "someone types", "a bell", "wind", "a cat", "thunder", "steps")


def _examples(count: int = 8) -> list[Example]:
    chance = np.random.default_rng(0)
    return [
        Example(
            cut(chance.standard_normal(16_000 * (1 + row % 3)).astype(np.float32) * 0.1),
            "" if row % 4 == 0 else f"title {row}",
            SENTENCES[row],
            row // 2,  # every two are the same sound
        )
        for row in range(count)
    ]


def _learner(fusion: str = "late", *, learned: bool = True) -> Learner:
    encoder = Encoder.random(TINY.model_copy(update={"fusion": fusion}), seed=0)
    return Learner(encoder, 0.05, learned=learned)


Gradients = dict[str, torch.Tensor]


def _gradients(learner: Learner, examples: Sequence[Example], chunk: int) -> Gradients:
    learner.zero_grad()
    contrastive_step(learner, examples, chunk, seed=7, precision=FLOAT32)
    sum_gradients(learner)
    return {
        name: parameter.grad.clone()
        for name, parameter in learner.named_parameters()
        if parameter.grad is not None
    }


def test_the_loss_is_the_authors_formula() -> None:
    """NT-Xent equals the mean, over all pairs of one identity, of both log probabilities."""
    generator = torch.Generator().manual_seed(0)
    items, sentences = (torch.randn(5, 8, generator=generator) for _ in range(2))
    identities = torch.tensor([0, 0, 1, 2, 2])
    logits = [
        [float(torch.cosine_similarity(i, s, dim=0)) / 0.05 for s in sentences] for i in items
    ]
    by_item, by_sentence = [], []
    for row in range(5):
        for column in range(5):
            if identities[row] == identities[column]:
                over_items = [logits[other][column] for other in range(5)]
                by_item.append(logits[row][column] - np.logaddexp.reduce(over_items))
                by_sentence.append(logits[row][column] - np.logaddexp.reduce(logits[row]))
    expected = -(np.mean(by_item) + np.mean(by_sentence)) / 2
    loss = nt_xent(items, sentences, identities, torch.tensor(0.05))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_another_sentence_for_the_same_sound_is_no_negative() -> None:
    """Two pairs of one identity that agree perfectly cost no more than chance between them."""
    same = torch.ones(2, 4)
    alone = nt_xent(same, same, torch.tensor([0, 0]), torch.tensor(0.05))
    torch.testing.assert_close(alone, torch.tensor(2.0).log())


@pytest.mark.parametrize("fusion", ["late", "mid", "audio", "metadata"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_chunks_have_the_gradient_of_the_whole_batch(fusion: str, chunk: int) -> None:
    """Encoding in chunks gives each weight the gradient that the whole batch at once gives it."""
    learner = _learner(fusion)
    whole = _gradients(learner, _examples(), 8)
    assert len(whole) > 10
    for name, gradient in _gradients(learner, _examples(), chunk).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-5, msg=name)


def test_the_step_gives_the_gradient_of_the_plain_loss() -> None:
    """The cached gradient equals that of the loss with everything in one graph."""
    learner, examples = _learner(), _examples()
    cached = _gradients(learner, examples, 3)
    learner.zero_grad()
    items, sentences = learner(examples)
    identities = torch.tensor([example.identity for example in examples])
    nt_xent(items, sentences, identities, learner.temperature).backward()
    for name, parameter in learner.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(cached[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_chunk_is_augmented_the_same_way_both_times() -> None:
    """With dropout and masks on, the same seed gives the same gradient, another seed another."""
    learner = _learner()
    encoder = learner.encoder
    augmentation = Augmentation(mask_bands=40, mask_frames=20, jitter_bands=True)
    encoder.front_end = AugmentedFrontEnd(encoder.front_end, augmentation)  # type: ignore[assignment]
    encoder.front_end.train()
    clone = copy.deepcopy(learner)
    for each, seed in ((learner, 7), (clone, 8)):
        each.zero_grad()
        contrastive_step(each, _examples(), 4, seed, FLOAT32)
    other = {name: p.grad for name, p in clone.named_parameters() if p.grad is not None}
    first = {n: p.grad.clone() for n, p in learner.named_parameters() if p.grad is not None}
    again = _gradients(learner, _examples(), 4)
    name = "encoder.audio_head.weight"
    torch.testing.assert_close(again[name], first[name])
    assert not torch.allclose(first[name], other[name])


def test_what_is_frozen_stays_without_gradient() -> None:
    """A frozen text tower takes part in the loss, and gets no gradient."""
    learner = _learner(learned=False)
    learner.encoder.text_tower.requires_grad_(requires_grad=False)
    gradients = _gradients(learner, _examples(), 3)
    assert not [name for name in gradients if "text_tower" in name]
    assert gradients["encoder.audio_head.weight"].abs().max() > 0


PROCESS = """
import sys, torch
sys.path[:0] = [sys.argv[1]]
torch.distributed.init_process_group("gloo")
from test_step import _examples, _learner, _gradients
rank = torch.distributed.get_rank()
learner = _learner()
gradients = _gradients(learner, _examples()[rank::2], 2)
if rank == 0:
    torch.save(gradients, sys.argv[2])
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    """Two processes that share a batch have the gradients of one process with all of it."""
    (tmp_path / "process.py").write_text(PROCESS)
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(tmp_path / "process.py"), str(Path(__file__).parent), str(tmp_path / "out.pt"),
        ],
        check=True, timeout=100, capture_output=True,
    )  # fmt: skip
    expected = _gradients(_learner(), _examples(), 8)
    for name, gradient in torch.load(tmp_path / "out.pt", weights_only=True).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5, msg=name)
