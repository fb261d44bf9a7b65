"""NT-Xent: items and the sentences that mean them come closer, all others move apart."""

import torch
from torch import Tensor


def nt_xent(items: Tensor, sentences: Tensor, identities: Tensor, temperature: Tensor) -> Tensor:
    """Return the symmetric NT-Xent loss of ``items`` and ``sentences``, both ``(pairs, dim)``.

    Row ``i`` of both is one pair; neither needs unit length. Every two rows of one identity, a
    number for each pair, are positives, so that another sentence for the same sound is no negative.
    With the positives I, the loss is the mean over I of the log probability of each, once among all
    sentences and once among all items (arXiv 2406.15897, authors' code).
    """
    normalise = torch.nn.functional.normalize
    logits = normalise(items) @ normalise(sentences).T / temperature.abs()
    positive = identities[:, None] == identities[None, :]
    by_item = logits.log_softmax(dim=0)[positive].mean()
    by_sentence = logits.log_softmax(dim=1)[positive].mean()
    return -(by_item + by_sentence) / 2
