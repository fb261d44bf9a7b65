"""Fusing where words repeat: what it spares, and that it changes nothing."""

from collections.abc import Sequence

import numpy as np
import pytest

from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, Fused
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.model.config import TINY
from audiofuse.core.moments import words
from audiofuse.core.moments.words import Words


class Reader(Encoder):
    """An encoder that tells which texts it has read."""

    def fuse(self, audio: AudioEmbedding, metadata: Sequence[str]) -> Fused:
        """Fuse."""
        self.__dict__.setdefault("read", []).extend(metadata)
        return super().fuse(audio, metadata)


def _encoder(fusion: str = "late") -> Reader:
    return Reader.random(TINY.model_copy(update={"fusion": fusion}), seed=0)


def _sounds(encoder: Encoder, count: int) -> AudioEmbedding:
    rows = np.random.default_rng(0).standard_normal((count, encoder.audio_dim))
    return AudioEmbedding(rows.astype(np.float32))


def _each(encoder: Encoder, audio: Floats, texts: Sequence[str]) -> Fused:
    pairs = zip(audio, texts, strict=True)
    fused = [Encoder.fuse(encoder, AudioEmbedding(row[None]), [text]) for row, text in pairs]
    vectors, norms = ([each.vectors for each in fused], [each.norms for each in fused])
    return Fused(np.concatenate(vectors), np.concatenate(norms))


def test_a_text_is_read_once_and_changes_nothing() -> None:
    """Known words, new ones and none are fused as by the encoder, and each is read once."""
    encoder = _encoder()
    remembered = Words(encoder)
    for texts in (["rain", "wind"], ["wind", "", "wind"], ["a bell", "rain", "a bell"]):
        sounds = _sounds(encoder, len(texts))
        fused = remembered.fuse(sounds, texts)
        alone = _each(encoder, sounds.pooled, texts)
        np.testing.assert_allclose(fused.vectors, alone.vectors, atol=1e-6)
        np.testing.assert_allclose(fused.norms, alone.norms, rtol=1e-5)
    assert encoder.read == ["rain", "wind", "", "a bell"]  # type: ignore[attr-defined]


def test_words_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many texts there are, only the last ones are remembered."""
    monkeypatch.setattr(words, "KEPT", 2)
    encoder = _encoder()
    remembered = Words(encoder)
    for text in ("rain", "wind", "a bell", "wind", "rain"):
        remembered.fuse(_sounds(encoder, 1), [text])
    assert encoder.read == ["rain", "wind", "a bell", "rain"]  # type: ignore[attr-defined]


def test_what_an_item_of_nothing_shows_of_words_is_not_remembered() -> None:
    """A sound and words that add nothing have no vector; a later sound of the same words has."""
    encoder = _encoder()
    remembered = Words(encoder)
    nothing = Fused(np.full((1, encoder.dim), np.nan, np.float32), np.zeros(1, np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "fuse", lambda *_: nothing)
        assert np.isnan(remembered.fuse(_sounds(encoder, 1), [""]).vectors).all()
    assert np.isfinite(remembered.fuse(_sounds(encoder, 1), [""]).vectors).all()


def test_what_is_no_sum_is_fused_by_the_encoder() -> None:
    """In mid fusion words cannot be added later, so each text is read with its own sound."""
    encoder = _encoder("mid")
    heard = encoder.encode_audio([np.random.default_rng(0).random(32_000, np.float32)])
    remembered, twice = Words(encoder), AudioEmbedding.stack([heard, heard])
    fused = remembered.fuse(twice, ["rain", "rain"])
    np.testing.assert_array_equal(fused.vectors, Encoder.fuse(encoder, twice, ["rain"] * 2).vectors)
    assert encoder.read == ["rain", "rain"]  # type: ignore[attr-defined]
