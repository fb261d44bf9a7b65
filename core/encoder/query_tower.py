"""The query tower travels: the text tower as a folder that fastembed loads, so without torch.

config.json, tokenizer.json, tokenizer_config.json, special_tokens_map.json, onnx/model.onnx

The tokenizer holds the paper's text normalisation and the token limit, the graph holds pooling,
projection and unit length. Nothing is left to whoever asks, so nobody can ask otherwise than we do.
"""

import copy
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.normalizers import Lowercase, Normalizer, Replace, Sequence

from audiofuse.core.encoder.graphs import UNIT, serialised, traced_text
from audiofuse.core.encoder.processing import TextProcessor
from audiofuse.core.model.text import TextTower

LAST_WHITE_SPACE = 0x3000

# Python lower-cases a sigma by its place in the word, tokenizers does not. This is Unicode's rule:
# it is final after a cased letter and not before one, whatever may be ignored in between.
FINAL_SIGMA = (
    r"(?<=[\p{Cased}&&\P{Case_Ignorable}]\p{Case_Ignorable}*)"
    r"Σ(?!\p{Case_Ignorable}*+\p{Cased})"
)


def export_query_tower(text_tower: TextTower, processor: TextProcessor, folder: Path) -> None:
    """Write text tower and processor into a new ``folder``; the same always give the same bytes.

    The tower itself, wherever and however it is in use, stays as it is.
    """
    folder.mkdir()
    tokenizer = processor.tokenizer
    bert = text_tower.bert.config
    _write_json(
        folder / "config.json",
        {
            "dim": text_tower.dim,
            "model_type": bert.model_type,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    _write_json(
        folder / "tokenizer_config.json",
        {
            "model_max_length": processor.max_tokens,
            "pad_token": tokenizer.pad_token,
            "padding_side": tokenizer.padding_side,
            "truncation_side": tokenizer.truncation_side,
        },
    )
    # fastembed would find what is named here in the text as it was typed; see _tokenizer.
    _write_json(folder / "special_tokens_map.json", {})
    (folder / "tokenizer.json").write_bytes(_tokenizer(processor).to_str(pretty=True).encode())
    (folder / "onnx").mkdir()
    graph = traced_text(copy.deepcopy(text_tower).cpu(), [UNIT]).graph(inline=True)
    (folder / "onnx" / "model.onnx").write_bytes(serialised(graph))


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _tokenizer(processor: TextProcessor) -> Tokenizer:
    """Return a tokenizer with everything inside that ``TextProcessor`` does around its own."""
    known = processor.tokenizer
    state = json.loads(known.backend_tokenizer.to_str())
    # Special tokens are found before any normalisation. We have taken the brackets off by then, so
    # that "[MASK]" is the word mask; the template adds [CLS] and [SEP] by their numbers.
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["special"]]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    own = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = Sequence([*_normalisation(), *own])
    tokenizer.enable_truncation(processor.max_tokens, direction=known.truncation_side)
    tokenizer.enable_padding(
        direction=known.padding_side, pad_id=known.pad_token_id, pad_token=known.pad_token
    )
    return tokenizer


def _normalisation() -> list[Normalizer]:
    """Return ``core.query.normalise`` step by step; BERT itself splits at the white space left."""
    white_space = "".join(filter(str.isspace, map(chr, range(LAST_WHITE_SPACE + 1))))
    return [
        Replace(Regex(FINAL_SIGMA), "ς"),
        Lowercase(),
        Replace(Regex(_any_of(string.punctuation)), ""),
        Replace(Regex(_any_of(white_space) + "+"), " "),
    ]


def _any_of(characters: str) -> str:
    return "[" + "".join(f"\\x{{{ord(character):x}}}" for character in characters) + "]"
