"""The text tower reads as the paper does."""

from pathlib import Path

import numpy as np
import pytest

from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.loading import load_folder
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.config import TINY
from audiofuse.core.model.text import load_bert
from audiofuse.core.query import normalise
from audiofuse.core.settings import Settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog, barking!", "a dog barking"),
        ("  rain\n\tfalls ", "rain falls"),
        ("Überraschung — ok", "überraschung — ok"),
        ("?!.", ""),
    ],
)
def test_text_is_lower_case_without_punctuation(text: str, expected: str) -> None:
    """Case, ASCII punctuation and extra white space make no difference to what is read."""
    assert normalise(text) == expected


def test_a_text_does_not_depend_on_its_neighbours(tiny_encoder: Encoder) -> None:
    """A text alone and the same text padded beside a longer one have the same vector."""
    alone = tiny_encoder.encode_text(["a dog"])
    beside = tiny_encoder.encode_text(["a dog", "a much longer text about a dog"])[:1]
    np.testing.assert_allclose(alone, beside, rtol=1e-5, atol=1e-5)


def test_only_the_first_tokens_are_read(tiny_encoder: Encoder) -> None:
    """Words behind the token limit change nothing."""
    long = "x" * 20 + " y" * 40
    np.testing.assert_array_equal(
        tiny_encoder.encode_text([long]), tiny_encoder.encode_text([long + " z"])
    )


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pooling_is_selectable(pooling: str) -> None:
    """Both poolings give one vector of the shared space for each text."""
    config = TINY.model_copy(update={"text": TINY.text.model_copy(update={"pooling": pooling})})
    assert Encoder.random(config, seed=0).encode_text(["a", "b c"]).shape == (2, config.dim)


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "xlm-roberta", "mpnet", "albert", "electra", "deberta-v2"]
)
def test_any_family_of_bert_reads(family: str, tmp_path: Path) -> None:
    """Models of BERT's family build, embed and travel in a bundle, without unused layers.

    What is loaded to run, without PyTorch, reads as they do.
    """
    bert = TINY.text.bert | {"model_type": family, "embedding_size": 16}
    config = TINY.model_copy(update={"text": TINY.text.model_copy(update={"bert": bert})})
    encoder = Encoder.random(config, seed=0)
    assert np.isfinite(encoder.encode_text(["a dog", "b"])).all()
    assert not [name for name in encoder.model.state_dict() if "pooler" in name]
    bundle = save_bundle(encoder, tmp_path, family, "")
    assert load_bundle(bundle).config == config
    texts = ["a dog", "", "rain falls on a tin roof and thunder rolls far away"]
    found = load_folder(Settings(device="cpu"), bundle).encode_text(texts)
    np.testing.assert_allclose(found, encoder.encode_text(texts), rtol=0, atol=1e-4)


def test_an_unknown_text_model_is_a_clear_error(tmp_path: object) -> None:
    """A folder without a model is named in a configuration error."""
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        load_bert(str(tmp_path))
