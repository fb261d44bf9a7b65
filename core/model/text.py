"""The text tower: a BERT for queries and metadata alike."""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import Head, TextConfig

HAVE_NO_POOLER = frozenset({"deberta-v2", "distilbert", "electra"})


class AnchorHead(nn.Module):
    """Append to a text's vector how near it is to each anchor, such as each AudioSet class.

    An audio tower that knows classes answers there directly. The softmax makes a sentence mean its
    few nearest classes: cosines alone find every sentence a little like every class.
    """

    def __init__(self, hidden: int, anchors: int) -> None:
        super().__init__()
        self.anchors = nn.Linear(hidden, anchors)
        self.loudness = nn.Parameter(torch.ones(()))  # of the anchors beside the text itself

    def forward(self, pooled: Tensor) -> Tensor:
        """Map ``(texts, hidden)`` to ``(texts, hidden + anchors)``."""
        text = nn.functional.normalize(pooled)
        nearest = nn.functional.normalize(self.anchors(text).softmax(dim=-1))
        return torch.cat([text, self.loudness * nearest], dim=-1)


class TextTower(nn.Module):
    """BERT, pooled to one vector and brought into the shared space by its head."""

    def __init__(self, bert: PreTrainedModel, shape: TextConfig, dim: int) -> None:
        """Wrap a BERT; ``dim`` is the width of the shared space."""
        super().__init__()
        hidden: int = bert.config.hidden_size
        self.bert = bert
        self.pooling = shape.pooling
        self.project = _head(shape.head, hidden, dim)
        self.hidden = hidden
        self.dim = hidden if shape.head == "none" else dim

    @classmethod
    def build(cls, shape: TextConfig, dim: int) -> Self:
        """Build from the configuration alone; all weights are random."""
        config = AutoConfig.for_model(**shape.bert)
        bert = AutoModel.from_config(config, **without_pooler(config.model_type))  # type: ignore[no-untyped-call]
        return cls(bert, shape, dim)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Embed tokens ``(texts, tokens)``: ``(texts, dim)``, not normalised to unit length."""
        return self.embed(self.encode_tokens(ids, mask), mask)

    def embed(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool and project what ``encode_tokens`` returns."""
        return self.project(self.pool(hidden, mask))  # type: ignore[no-any-return]

    def encode_tokens(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return BERT's last hidden states ``(texts, tokens, hidden)``; padding has a mask of 0."""
        return self.bert(input_ids=ids, attention_mask=mask).last_hidden_state  # type: ignore[no-any-return]

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return one vector for each text, ``(texts, hidden)``, before the head."""
        if self.pooling == "cls":
            return hidden[:, 0]
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


def _head(head: Head, hidden: int, dim: int) -> nn.Module:
    if head == "none":
        return nn.Identity()
    return nn.Linear(hidden, dim) if head == "linear" else AnchorHead(hidden, dim - hidden)


def load_bert(source: str | Path) -> PreTrainedModel:
    """Load a pretrained BERT by Hugging Face id or folder.

    Weights are read from safetensors only, so no code comes with them. Raises
    ``ConfigurationError`` when there is no such model or the hub cannot be reached.
    """
    # Its progress bar, and its report that BERT's unused pooling layer is left out, help nobody.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        family = AutoConfig.from_pretrained(source).model_type
        bert: PreTrainedModel = AutoModel.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, **without_pooler(family)
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot load the text model {source}: {error}") from error
    return bert


def without_pooler(family: str) -> dict[str, bool]:
    """Return the option that leaves out a model's own pooling layer, which we never use.

    Families that have none do not take the option.
    """
    return {} if family in HAVE_NO_POOLER else {"add_pooling_layer": False}
