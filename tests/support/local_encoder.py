"""An encoder in this process, asked as a sync asks the device."""

from collections.abc import Iterable

import numpy as np

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.embeddings import AudioEmbedding, EncodedItem, Floats
from audiofuse.core.encoder.encoder import Encoder


class LocalEncoder:
    """Encodes and fuses at once, in the thread that asks."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.fuses_stored_audio = encoder.fuses_stored_audio

    def encode(self, sound: str, windows: Iterable[Samples], text: str) -> EncodedItem:
        """Encode a sound and fuse it with its text."""
        del sound
        return self._fuse(self._encoder.encode_audio(windows), text)

    def fuse(self, sound: str, audio: Floats, text: str) -> EncodedItem:
        """Fuse a stored audio vector with a text."""
        del sound
        return self._fuse(AudioEmbedding(np.array(audio, np.float32)[None]), text)

    def _fuse(self, embedding: AudioEmbedding, text: str) -> EncodedItem:
        fused = self._encoder.fuse(embedding, [text])
        return EncodedItem(embedding.pooled[0], fused.vectors[0], float(fused.norms[0]))
