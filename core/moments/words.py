"""Fusing where words repeat: a text is read once for as long as it is remembered.

Where an item is a sum, its words add the same to it as to each of its windows, and as to all other
sounds with the same words. Reading a text takes as long as hearing some seconds.
"""

from collections.abc import Sequence

import numpy as np

from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, Fused
from audiofuse.core.encoder.encoder import Encoder

# Texts that are remembered, of each some 4 kB. Raised, words that come again later are not read
# again, either.
KEPT = 256


class Words:
    """Fuses as an encoder does, and remembers what words add. One thread at a time may ask."""

    def __init__(self, encoder: Encoder) -> None:
        """Remember nothing yet."""
        self._encoder = encoder
        self._known: dict[str, Floats] = {}  # the one that was read last is last

    def fuse(self, audio: AudioEmbedding, texts: Sequence[str]) -> Fused:
        """Fuse sounds, or windows of sounds, with one text each; see ``Encoder.fuse``."""
        projected = self._encoder.project_audio(audio.pooled)
        if projected is None:  # no sum
            return self._encoder.fuse(audio, texts)
        new = {text: row for row, text in enumerate(texts) if text not in self._known}
        if len(new) == len(texts):  # to the bit as the encoder does
            fused = self._encoder.fuse(audio, texts)
            self._remember(texts, _added(fused, projected))
            return fused
        added = {text: self._known[text] for text in texts if text not in new}
        if new:
            rows = list(new.values())
            fused = self._encoder.fuse(AudioEmbedding(audio.pooled[rows]), list(new))
            added |= self._remember(list(new), _added(fused, projected[rows]))
        sums = projected + np.stack([added[text] for text in texts])
        norms: Floats = np.linalg.norm(sums, axis=1)
        with np.errstate(invalid="ignore"):  # 0 / 0: as of an item of which nothing is used
            return Fused(sums / norms[:, None], norms)

    def _remember(self, texts: Sequence[str], added: Floats) -> dict[str, Floats]:
        """Remember what texts add, but not what an item of nothing makes of it; return all."""
        read = dict(zip(texts, added, strict=True))
        self._known |= {text: words for text, words in read.items() if np.isfinite(words).all()}
        for text in list(self._known)[:-KEPT]:
            del self._known[text]
        return read


def _added(fused: Fused, projected: Floats) -> Floats:
    added: Floats = fused.vectors * fused.norms[:, None] - projected
    return added
