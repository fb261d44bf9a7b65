"""NT-Xent: items and the sentences that mean them come closer, all others move apart.

And what a teacher says of all of them, as a further loss.
"""

import torch
from torch import Tensor


def nt_xent(items: Tensor, sentences: Tensor, identities: Tensor, temperature: Tensor) -> Tensor:
    """Return the symmetric NT-Xent loss of ``items`` and ``sentences``, both ``(pairs, dim)``.

    Row ``i`` of both is one pair; neither needs unit length. Every two rows of one identity, a
    number for each pair, are positives, so that another sentence for the same sound is no negative.
    With the positives I, the loss is the mean over I of the log probability of each, once among all
    sentences and once among all items (arXiv 2406.15897, authors' code).
    """
    logits = _logits(items, sentences, temperature)
    positive = identities[:, None] == identities[None, :]
    by_item = logits.log_softmax(dim=0)[positive].mean()
    by_sentence = logits.log_softmax(dim=1)[positive].mean()
    return -(by_item + by_sentence) / 2


def taught_loss(items: Tensor, sentences: Tensor, taught: Tensor, temperature: Tensor) -> Tensor:
    """Return how far the similarities of ``items`` and ``sentences`` are from those of a teacher.

    ``taught``, ``(pairs, pairs)``, are its similarities in units of its own temperature. The loss
    is the Kullback-Leibler divergence from its distribution to ours, once over all sentences and
    once over all items (arXiv 2408.11641, there as cross entropy); 0 where they are the same.
    """
    logits = _logits(items, sentences, temperature)
    by_item, by_sentence = (_divergence(taught.T, logits.T), _divergence(taught, logits))
    return (by_item + by_sentence) / 2


def _divergence(taught: Tensor, logits: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(
        logits.log_softmax(dim=1), taught.log_softmax(dim=1), reduction="batchmean", log_target=True
    )


def _logits(items: Tensor, sentences: Tensor, temperature: Tensor) -> Tensor:
    normalise = torch.nn.functional.normalize
    return normalise(items) @ normalise(sentences).T / temperature.abs()
