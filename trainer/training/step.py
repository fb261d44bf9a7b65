"""One training step on a batch larger than memory, on one process or many.

NT-Xent needs every vector of the batch at once, but not every activation. So the batch is encoded
in chunks without gradients, the loss gives each vector its gradient, and each chunk is encoded once
more to carry that gradient into the weights (gradient caching, arXiv 2101.06983). The gradient is
exactly that of the whole batch. Across processes only the vectors travel, and the gradients' sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.processing import WINDOWS_PER_BATCH
from audiofuse.core.encoder.torch_runtime import windows_of, windows_on, words, words_on
from audiofuse.core.model.hybrid import Windows, Words
from audiofuse.trainer.data.batches import Example
from audiofuse.trainer.training.loss import nt_xent, taught_loss
from audiofuse.trainer.training.teacher import Teaching


class Inputs(NamedTuple):
    """Examples as tensors, on the CPU."""

    windows: list[Windows]
    metadata: Words
    sentences: Words


class Learner(nn.Module):
    """What is trained: an encoder's model and, if it is learned, the temperature."""

    def __init__(self, encoder: Encoder, temperature: float, *, learned: bool) -> None:
        super().__init__()
        self.encoder = encoder.model
        self.temperature = nn.Parameter(torch.tensor(temperature), requires_grad=learned)
        self._processors = encoder

    def inputs(self, examples: Sequence[Example]) -> Inputs:
        """Return what the model takes of examples."""
        by = self._processors
        return Inputs(
            training_windows(by, [each.windows for each in examples]),
            words(by.metadata_processor([each.metadata for each in examples])),
            words(by.text_processor([each.sentence for each in examples])),
        )

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Encode items and sentences of examples: twice ``(examples, dim)``."""
        device = self.encoder.device
        items = self.encoder(windows_on(inputs.windows, device), words_on(inputs.metadata, device))
        return items, self.encoder.encode_text(words_on(inputs.sentences, device))


def training_windows(encoder: Encoder, clips: Sequence[Sequence[Samples]]) -> list[Windows]:
    """Return the windows of clips, as many together as the encoder's device is fastest with.

    A CPU is fastest on what fits its caches, a GPU on as much as there is. Encoders that use no
    audio need none.
    """
    if not encoder.config.uses_audio:
        return []
    at_once = WINDOWS_PER_BATCH if encoder.device == "cpu" else sum(map(len, clips))
    return windows_of(clips, encoder.audio_processor, at_once)


@dataclass(frozen=True)
class Precision:
    """Where the numbers are computed: ``bf16`` by autocast, or float32."""

    device: str
    bf16: bool

    def autocast(self) -> torch.autocast:
        """Return the context in which the towers run; the loss is always float32."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)


def world() -> tuple[int, int]:
    """Return this process's number and how many there are."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def contrastive_step(  # noqa: PLR0913, PLR0917 - what is learned, from what, and how
    learner: Learner, examples: Sequence[Example], chunk: int, seed: int, precision: Precision,
    teaching: Teaching | None = None,
) -> Tensor:  # fmt: skip
    """Add to each weight the gradient of the NT-Xent loss of the global batch; return that loss.

    Each process brings the same number of ``examples``. At most ``chunk`` of them are encoded at a
    time; ``seed`` makes a chunk's dropout and augmentation the same both times. What teachers say
    of the batch is part of the loss by its weight.
    """
    chunks = [learner.inputs(examples[at : at + chunk]) for at in range(0, len(examples), chunk)]
    rank, _ = world()
    identities = torch.tensor([e.identity for e in examples], device=learner.temperature.device)

    def encode(number: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(hash((seed, rank, number)))
        with precision.autocast():
            items, sentences = learner(chunks[number])
        return items.float(), sentences.float()

    if len(chunks) == 1:  # then nothing is encoded twice
        encoded = [encode(0)]
    else:
        with torch.no_grad():
            encoded = [encode(number) for number in range(len(chunks))]
    items, sentences = (
        torch.cat(parts).detach().requires_grad_() for parts in zip(*encoded, strict=True)
    )
    both = _gathered(items), _gathered(sentences)
    loss = nt_xent(*both, _gathered(identities), learner.temperature)
    if teaching:
        taught = _taught(teaching, examples)
        loss = loss + teaching.weight * taught_loss(*both, taught, learner.temperature)
    loss.backward()  # type: ignore[no-untyped-call]
    assert items.grad is not None
    assert sentences.grad is not None
    for number in range(len(chunks)):
        vectors = encoded[0] if len(chunks) == 1 else encode(number)
        rows = slice(number * chunk, (number + 1) * chunk)
        for vector, gradient in zip(vectors, (items.grad[rows], sentences.grad[rows]), strict=True):
            if vector.requires_grad:  # not where all that made it is frozen
                vector.backward(gradient)  # type: ignore[no-untyped-call]
    return loss.detach()


def _taught(teaching: Teaching, examples: Sequence[Example]) -> Tensor:
    """Return how the teachers compare the sounds and sentences of the global batch, in the mean."""
    similarities = []
    for teacher in teaching.teachers:
        sounds, sentences = map(_gathered, teacher.vectors(examples))
        similarities.append(teacher.scale * sounds @ sentences.T)
    return torch.stack(similarities).mean(dim=0)


def sum_gradients(learner: Learner) -> None:
    """Add up the processes' gradients; a weight that no example needed has none: zero."""
    _, processes = world()
    for parameter in learner.encoder.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if processes > 1:
                distributed.all_reduce(parameter.grad)


def _gathered(mine: Tensor) -> Tensor:
    """Return the rows of all processes; gradients reach only the own ones."""
    rank, processes = world()
    if processes == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(processes)]
    distributed.all_gather(parts, mine.detach().contiguous())
    parts[rank] = mine
    return torch.cat(parts)
