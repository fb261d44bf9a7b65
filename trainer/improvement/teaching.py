"""How heads learn: NT-Xent with many positives, held to what they said where nothing is known.

Each question is to choose its sounds among all. What it shall choose is mixed of two: the sounds
that it means, and what it chose before, without the sounds that listeners say it misses. So
whatever nobody spoke about is no negative, and stays. General sentences are to choose what they
chose before, and those about a kind that a tag of the archive names, the sounds of that tag: else
what is taught of one kind answers for its neighbours, too.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from audiofuse.core.model.hybrid import HybridEncoder
from audiofuse.trainer.improvement.heads import Reader, Stored, heads, items, questions
from audiofuse.trainer.improvement.turns import Kind, Share

# Chosen on eight kinds of sounds and a start that was taught none of them (DECISIONS.md).
STEPS = 100
RATE = 0.006  # of a weight's usual size, a step; higher learns more, and forgets more
WARM_UP = 20  # steps
TEMPERATURE = 0.07  # of the choice among sounds
AS_BEFORE = 0.1  # share of what a question chose before in what it shall choose
BATCH = 128  # questions, and as many general sentences
NEVER = -100.0  # a cosine that is never chosen
MOST_SOUNDS = 320  # that are chosen among in a step; more costs time
# Part of a question's vector that is noise: so what is learned reaches wordings that are near.
NOISE = 0.7
SHARES = {Kind.ASKED: 0.7, Kind.OWN: 0.3}  # of a batch
GENERAL_WEIGHT = 3.0  # of their loss; more keeps more, and learns less


class Lesson(NamedTuple):
    """What is learned from: sounds, questions before the head, what they mean and miss.

    ``meant`` and ``missed`` are boolean ``(questions, sounds)``, ``weights`` ``(questions,)`` are
    the chances to be taken into a batch; ``general`` are further questions ``(sentences, hidden)``,
    ``general_meant`` is ``(sentences, sounds)``.
    """

    sounds: Stored
    questions: Tensor
    meant: Tensor
    missed: Tensor
    weights: Tensor
    general: Tensor
    general_meant: Tensor


def lesson(share: Share, reader: Reader, sounds: Stored) -> Lesson:
    """Return what a share teaches; ``sounds`` are those of the whole archive."""
    general = [each for each in share.questions if each.kind is Kind.GENERAL]
    told = Share(share.sounds, [each for each in share.questions if each.kind is not Kind.GENERAL])
    counts = {kind: sum(each.kind is kind for each in told.questions) for kind in SHARES}
    return Lesson(
        sounds.select(torch.tensor(share.sounds, dtype=torch.int64)),
        normalize(reader.questions([each.text for each in told.questions])),
        told.relevance(),
        told.relevance(missed=True),
        torch.tensor([SHARES[each.kind] / counts[each.kind] for each in told.questions]),
        normalize(reader.questions([each.text for each in general])) if general else torch.zeros(0),
        Share(share.sounds, general).relevance(),
    )


def teach(
    start: HybridEncoder, taught: Lesson, seed: int, tick: Callable[[], object]
) -> HybridEncoder:
    """Return a copy of a model whose heads have learned; ``tick`` is called after each step."""
    model = copy.deepcopy(start).requires_grad_(requires_grad=False)
    groups = [
        {"params": [each.requires_grad_()], "lr": RATE * _size(each)} for each in heads(model)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _pace)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        before = _cosines(start, taught.sounds, taught.questions)
        general = _cosines(start, taught.sounds, taught.general) if len(taught.general) else []
    for _ in range(STEPS):
        some = torch.multinomial(taught.weights, BATCH, replacement=True, generator=chance)
        columns = _columns(taught, some, chance)
        sounds = taught.sounds.select(columns)
        wanted = [
            _wanted(each[some][:, columns], taught.meant[some][:, columns],
                    taught.missed[some][:, columns])
            for each in before
        ]  # fmt: skip
        loss = _loss(model, sounds, _blurred(taught.questions[some], chance), wanted)
        if len(taught.general):
            others = torch.randint(len(taught.general), (BATCH,), generator=chance)
            meant = taught.general_meant[others][:, columns]
            kept = [
                _wanted(each[others][:, columns], meant, torch.zeros_like(meant))
                for each in general
            ]
            loss = loss + GENERAL_WEIGHT * _loss(model, sounds, taught.general[others], kept)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        tick()
    return model.requires_grad_(requires_grad=False)


def _size(weights: Tensor) -> float:
    """Return the usual size of a weight; of those that are all 0 a small one."""
    return max(float(weights.detach().square().mean().sqrt()), 1e-3)


def _pace(step: int) -> float:
    return min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / STEPS)) / 2


def _cosines(model: HybridEncoder, sounds: Stored, pooled: Tensor) -> list[Tensor]:
    asked = questions(model, pooled)
    return [asked @ view.T for view in items(model, sounds)]


def _choice(cosines: Tensor) -> Tensor:
    return (cosines / TEMPERATURE).softmax(1)


def _wanted(before: Tensor, meant: Tensor, missed: Tensor) -> Tensor:
    """Return what questions shall choose: probabilities ``(questions, sounds)``."""
    kept = _choice(before.masked_fill(missed, NEVER))
    positives = meant.float()
    number = positives.sum(1, keepdim=True)
    mixed = AS_BEFORE * kept + (1 - AS_BEFORE) * positives / number.clamp(min=1)
    return torch.where(number > 0, mixed, kept)


def _loss(model: HybridEncoder, sounds: Stored, pooled: Tensor, wanted: list[Tensor]) -> Tensor:
    """Return the cross-entropy of what questions choose, a mean over both views of the sounds."""
    losses = [
        -(target * (cosines / TEMPERATURE).log_softmax(1)).sum(1).mean()
        for cosines, target in zip(_cosines(model, sounds, pooled), wanted, strict=True)
    ]
    return torch.stack(losses).mean()


def _blurred(pooled: Tensor, chance: torch.Generator) -> Tensor:
    noise = torch.randn(pooled.shape, generator=chance) / math.sqrt(pooled.shape[1])
    return normalize(pooled + NOISE * noise)


def _columns(taught: Lesson, some: Tensor, chance: torch.Generator) -> Tensor:
    """Return which sounds are chosen among: those that are spoken of, and others by chance."""
    sounds = taught.meant.shape[1]
    if sounds <= MOST_SOUNDS:
        return torch.arange(sounds)
    spoken = (taught.meant[some] | taught.missed[some]).any(0)
    order = torch.rand(sounds, generator=chance) + spoken
    return order.topk(MOST_SOUNDS).indices.sort().values
