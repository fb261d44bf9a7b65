"""Processors: from sounds and words to what a model takes. They are part of what makes a vector."""

import json
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import Preprocessing
from audiofuse.core.query import normalise

if TYPE_CHECKING:  # its import takes seconds; search and service load no encoder to begin with
    from transformers import PreTrainedTokenizerBase

WINDOWS_PER_BATCH = 8  # 80 s of audio; bounds memory, and is what CPUs are fastest with


class AudioProcessor:
    """Turns windows of sounds into batches of waveforms, padded alike."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Pad, and append silence, as a bundle says."""
        self._multiple = round(preprocessing.padding_s * SAMPLE_RATE)
        self._silence = round(preprocessing.silence_s * SAMPLE_RATE)

    def heard_length(self, window: Samples) -> int:
        """Return how many samples of a padded window are heard: its own, and appended silence.

        Only the last window of a sound is shorter than others, so that only it has room.
        """
        return max(window.size, min(window.size + self._silence, WINDOW_SAMPLES))

    def padded_length(self, window: Samples) -> int:
        """Return to how many samples a window is padded."""
        return -(-self.heard_length(window) // self._multiple) * self._multiple

    def __call__(self, windows: Sequence[Samples]) -> tuple[Samples, NDArray[np.int32]]:
        """Pad windows, float32 ``(samples,)`` each, to the longest of them and its padding.

        Returns waveforms, float32 ``(windows, samples)``, and how much of each is heard, int32
        ``(windows,)``.
        """
        waveforms = np.zeros((len(windows), max(map(self.padded_length, windows))), np.float32)
        for row, window in zip(waveforms, windows, strict=True):
            row[: window.size] = window
        return waveforms, np.array([self.heard_length(w) for w in windows], np.int32)


class Tokens(NamedTuple):
    """Texts as tokens: ``ids`` and ``mask`` int64 ``(texts, tokens)``; 0 in the mask is padding.

    ``present``, boolean ``(texts,)``, tells texts that hold words from those that hold none.
    """

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    present: NDArray[np.bool_]


class TextProcessor:
    """Turns texts into tokens, normalised as in the paper, padded to the longest."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> None:
        """Keep at most ``max_tokens`` of each text, [CLS] and [SEP] among them."""
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokenise texts, at least one."""
        normalised = [normalise(text) for text in texts]
        ids, mask = self._tokenise(normalised)
        return Tokens(ids, mask, np.array([bool(text) for text in normalised], np.bool_))

    def _tokenise(self, normalised: list[str]) -> Iterator[NDArray[np.int64]]:
        """Yield the tokens' numbers, and their mask."""
        tokens = self.tokenizer(
            normalised, padding=True, truncation=True, max_length=self.max_tokens,
            return_tensors="np",
        )  # fmt: skip
        return (tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask"))


class SavedTextProcessor(TextProcessor):
    """The same, by a tokenizer as a bundle keeps it, without transformers.

    What transformers saved is its own tokenizer's rules, and beside them on which side it pads.
    """

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Read the tokenizer in ``folder``; ``ValueError`` if it is none."""
        self.max_tokens = max_tokens
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self._tokenizer = _read_tokenizer(folder / "tokenizer.json")
        padding = _content(config["pad_token"])
        self._tokenizer.enable_padding(
            direction=config.get("padding_side", "right"),
            pad_id=self._tokenizer.token_to_id(padding),
            pad_token=padding,
        )
        self._tokenizer.enable_truncation(
            max_tokens, direction=config.get("truncation_side", "right")
        )

    def _tokenise(self, normalised: list[str]) -> Iterator[NDArray[np.int64]]:
        encoded = self._tokenizer.encode_batch(normalised)
        yield np.array([each.ids for each in encoded], np.int64)
        yield np.array([each.attention_mask for each in encoded], np.int64)


def _read_tokenizer(path: Path) -> Tokenizer:
    text = path.read_text(encoding="utf-8")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # it knows no other
        raise ValueError(f"{path} is no tokenizer: {error}") from error


def _content(token: str | dict[str, Any]) -> str:
    """Return a special token's text, however it was saved."""
    return token if isinstance(token, str) else str(token["content"])


def load_tokenizer(source: str | Path) -> "PreTrainedTokenizerBase":
    """Load a tokenizer by Hugging Face id or folder; a folder needs no network.

    Raises ``ConfigurationError`` when there is no such tokenizer or the hub cannot be reached.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 - takes seconds, where none is needed

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, local_files_only=isinstance(source, Path)
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"cannot load the tokenizer {source}: {error}") from error
    return tokenizer


def character_tokenizer() -> "PreTrainedTokenizerBase":
    """Return a WordPiece tokenizer that knows single characters: the words of random encoders."""
    from transformers import BertTokenizer  # noqa: PLC0415 - takes seconds, where none is needed

    characters = string.ascii_lowercase + string.digits
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    pieces = (*special, *characters, *(f"##{character}" for character in characters))
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
