"""NT-Xent: the authors' formula, with several positives for one sound."""

import numpy as np
import pytest
import torch

from audiofuse.trainer.training.loss import nt_xent


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


def test_a_lower_temperature_sharpens() -> None:
    """Of pairs that agree, the loss falls with the temperature; its sign does not matter."""
    vectors, identities = torch.eye(3), torch.arange(3)
    sharp, dull = (nt_xent(vectors, vectors, identities, torch.tensor(t)) for t in (0.05, 0.5))
    assert float(sharp) < float(dull)
    negative = nt_xent(vectors, vectors, identities, torch.tensor(-0.05))
    torch.testing.assert_close(negative, sharp)
