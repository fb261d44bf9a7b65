"""The text tower: a BERT that reads queries and metadata alike, with the paper's normalisation."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from core.errors import ConfigurationError
from core.query import normalise

Pooling = Literal["cls", "mean"]

HAVE_NO_POOLER = frozenset({"deberta-v2", "distilbert", "electra"})


class TextTower(nn.Module):
    """BERT, pooled to one vector and, if ``dim`` is given, projected linearly."""

    def __init__(
        self,
        bert: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: Pooling,
        max_tokens: int,
        dim: int | None,
    ) -> None:
        """Wrap a BERT and its tokenizer; without ``dim`` the pooled vector is the embedding."""
        super().__init__()
        hidden: int = bert.config.hidden_size
        self.bert = bert
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_tokens = max_tokens
        self.project: nn.Module = nn.Identity() if dim is None else nn.Linear(hidden, dim)
        self.hidden = hidden
        self.dim = dim or hidden

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: ``(len(texts), dim)``, not normalised to unit length."""
        return self.embed(*self.read_tokens(texts))

    def embed(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool and project what ``read_tokens`` returns."""
        return self.project(self._pool(hidden, mask))  # type: ignore[no-any-return]

    def read_tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return BERT's last hidden states ``(texts, tokens, hidden)`` and which are no padding."""
        tokens = self.tokenizer(
            [normalise(text) for text in texts],
            padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt",
        ).to(self.bert.device)  # fmt: skip
        return self.bert(**tokens).last_hidden_state, tokens["attention_mask"].bool()

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return hidden[:, 0]
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1)


def load_bert(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a pretrained BERT and its tokenizer by Hugging Face id or folder.

    Weights are read from safetensors only, so no code comes with them. Raises
    ``ConfigurationError`` when there is no such model or the hub cannot be reached.
    """
    # Its progress bar, and its report that BERT's unused pooling layer is left out, help nobody.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        family = AutoConfig.from_pretrained(source).model_type
        bert = AutoModel.from_pretrained(
            source, use_safetensors=True, dtype=torch.float32, **without_pooler(family)
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot load the text model {source}: {error}") from error
    return bert, tokenizer


def without_pooler(family: str) -> dict[str, bool]:
    """Return the option that leaves out a model's own pooling layer, which we never use.

    Families that have none do not take the option.
    """
    return {} if family in HAVE_NO_POOLER else {"add_pooling_layer": False}


def character_tokenizer() -> PreTrainedTokenizerBase:
    """Return a WordPiece tokenizer that knows single characters: the words of random encoders."""
    characters = string.ascii_lowercase + string.digits
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    pieces = (*special, *characters, *(f"##{character}" for character in characters))
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
