"""What listeners' questions mean, as their verdicts tell, and whether the verdicts agree at all."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from audiofuse.trainer.improvement.archive import Archive

# A question means a tag that most of its fitting sounds carry, and few of its missing ones.
LEAST_OF_FITS = 2 / 3
FITS_FOR_A_MISS = 4  # a listener errs now and then
SHUFFLES = 2000
DOUBT = 0.002  # how often chance may look as much like agreement: one archive in 500


def tags_meant(archive: Archive, nearness: Mapping[tuple[str, str], float]) -> dict[str, str]:
    """Return the tag that each question means, where its verdicts tell one.

    Of several the one that more fitting sounds carry, then the one whose words are nearer to the
    question: ``nearness`` by question and tag.
    """
    found: dict[str, str] = {}
    for question, verdicts in archive.verdicts.items():
        fits = [set(archive.sounds[row].tags) for row, fitting in verdicts.items() if fitting]
        misses = [set(archive.sounds[row].tags) for row, fitting in verdicts.items() if not fitting]
        ranked = []
        for tag in sorted(set().union(*fits)):
            right, wrong = (sum(tag in tags for tags in side) for side in (fits, misses))
            if right >= LEAST_OF_FITS * len(fits) and right >= FITS_FOR_A_MISS * wrong:
                ranked.append((right, nearness[question, tag], tag))
        if ranked:
            found[question] = max(ranked)[2]
    return found


def candidates(archive: Archive) -> list[tuple[str, str]]:
    """Return each question with each tag that a sound which fits it carries."""
    return [
        (question, tag)
        for question, verdicts in archive.verdicts.items()
        for tag in sorted({tag for row, fits in verdicts.items() if fits
                           for tag in archive.sounds[row].tags})
    ]  # fmt: skip


def doubt(archive: Archive, items: Tensor) -> float:
    """Return how often verdicts by chance would agree as well as these do: 0 is never.

    Verdicts agree where the sounds that fit one question are like each other, and so are those that
    miss it, but not the ones like the others. ``items`` are the vectors of the archive's sounds,
    ``(sounds, dim)``. By chance means: the same verdicts, shuffled.
    """
    pairs = [
        (number, row, fits)
        for number, verdicts in enumerate(archive.verdicts.values())
        for row, fits in verdicts.items()
    ]
    questions, rows, opinions = (np.array(each) for each in zip(*pairs, strict=True))
    # Without their mean, sounds are alike by more than being sounds.
    judged = normalize(items - items.mean(0))[torch.from_numpy(rows)].double().numpy()
    alike = (judged @ judged.T) * (questions[:, None] == questions)
    np.fill_diagonal(alike, 0.0)
    chance = np.random.default_rng(0)

    def agreement(fits: NDArray[np.bool_]) -> float:
        weights = fits - fits.mean()
        return float(weights @ alike @ weights)

    observed = agreement(opinions)
    shuffled = [agreement(chance.permutation(opinions)) for _ in range(SHUFFLES)]
    return (1 + sum(each >= observed for each in shuffled)) / (1 + SHUFFLES)
