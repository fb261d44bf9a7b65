"""One training step: the gradient of the whole batch, whatever it is cut into."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.model.config import TINY
from audiofuse.trainer.data.batches import Example, cut
from audiofuse.trainer.training.augment import Augmentation, AugmentedFrontEnd
from audiofuse.trainer.training.loss import nt_xent
from audiofuse.trainer.training.step import (
    Inputs,
    Learner,
    Precision,
    contrastive_step,
    sum_gradients,
)

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
    items, sentences = learner(learner.inputs(examples))
    identities = torch.tensor([example.identity for example in examples])
    nt_xent(items, sentences, identities, learner.temperature).backward()
    for name, parameter in learner.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(cached[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_a_chunk_is_augmented_the_same_way_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout and masks on, both passes over a chunk see the same vectors."""
    learner = _learner()
    encoder = learner.encoder.train()
    augmentation = Augmentation(mask_bands=40, mask_frames=20, jitter_bands=True)
    encoder.front_end = AugmentedFrontEnd(encoder.front_end, augmentation).train()  # type: ignore[arg-type]
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    encoded: list[torch.Tensor] = []
    forward = Learner.forward

    def remember(self: Learner, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        both = forward(self, inputs)
        encoded.append(torch.cat([each.detach() for each in both]))
        return both

    monkeypatch.setattr(Learner, "forward", remember)
    contrastive_step(learner, _examples(), 4, 7, FLOAT32)
    first, second = encoded[:2], encoded[2:]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)
    contrastive_step(learner, _examples(), 4, 8, FLOAT32)
    assert not torch.allclose(encoded[4], first[0])


@pytest.mark.parametrize("fusion", ["late", "metadata", "mid"])
def test_half_precision_has_nearly_the_loss(fusion: str) -> None:
    """In bfloat16 a step runs for each fusion, with the same loss and a gradient everywhere."""
    learner = _learner(fusion)
    exact = contrastive_step(learner, _examples(), 3, 7, FLOAT32)
    reached = {name for name, p in learner.named_parameters() if p.grad is not None}
    learner.zero_grad()
    loss = contrastive_step(learner, _examples(), 3, 7, Precision("cpu", bf16=True))
    assert float(loss) == pytest.approx(float(exact), rel=0.1)
    gradients = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    assert gradients.keys() == reached
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())


def test_what_is_frozen_stays_without_gradient() -> None:
    """A frozen text tower takes part in the loss, and gets no gradient."""
    learner = _learner(learned=False)
    learner.encoder.text_tower.requires_grad_(requires_grad=False)
    gradients = _gradients(learner, _examples(), 3)
    assert not [name for name in gradients if "text_tower" in name]
    assert gradients["encoder.audio_head.weight"].abs().max() > 0


PROCESSES = """
import os, sys, torch
sys.path[:0] = [sys.argv[1]]
from test_step import _examples, _learner, _gradients
other = os.fork()  # both have PyTorch, which takes seconds to load, by now
rank = 0 if other else 1
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{sys.argv[2]}.meeting", rank=rank, world_size=2
)
gradients = _gradients(_learner(), _examples()[rank::2], 2)
if rank == 0:
    torch.save(gradients, sys.argv[2])
torch.distributed.destroy_process_group()
if other:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


@pytest.mark.timeout(400)  # another process loads PyTorch: slow on a busy machine
def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    """Two processes that share a batch have the gradients of one process with all of it."""
    subprocess.run(
        [sys.executable, "-c", PROCESSES, Path(__file__).parent, tmp_path / "out.pt"],
        check=True, timeout=300, capture_output=True,
    )  # fmt: skip
    expected = _gradients(_learner(), _examples(), 8)
    for name, gradient in torch.load(tmp_path / "out.pt", weights_only=True).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5, msg=name)
