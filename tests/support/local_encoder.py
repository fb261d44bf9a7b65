"""An encoder in this process, asked as a sync asks the device."""

from collections.abc import Iterable, Iterator

import numpy as np

from audiofuse.core.audio.windows import SAMPLE_RATE, Samples
from audiofuse.core.encoder.embeddings import AudioEmbedding, EncodedItem, Floats, Fused
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.moments.windows import Cutting, EncodedWindows, Window, WindowCutter
from audiofuse.core.moments.words import Words

AT_ONCE = 4  # windows that are handed over together: few, so that tests meet several portions


class LocalEncoder:
    """Encodes and fuses at once, in the thread that asks."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.fuses_stored_audio = encoder.fuses_stored_audio

    def encode(
        self, sound: str, windows: Iterable[Samples], text: str, cutting: Cutting | None = None
    ) -> EncodedItem:
        """Encode a sound and fuse it with its text; cut, its windows are handed over meanwhile."""
        del sound
        if cutting:
            windows = self._cut(windows, text, cutting)
        return self._fuse(self._encoder.encode_audio(windows), text)

    def _cut(self, windows: Iterable[Samples], text: str, cutting: Cutting) -> Iterator[Samples]:
        cutter = WindowCutter(cutting.grid, keeps_frames=not self.fuses_stored_audio)
        cut: list[Window] = []
        given = 0
        for number, samples in enumerate(windows):
            if number or cutting.grid.count(samples.size / SAMPLE_RATE):
                (heard,) = self._encoder.encode_frames([samples])
                assert heard.frames is not None
                heard_length = self._encoder.audio_processor.heard_length(samples)
                cut += cutter.add(samples.size, heard_length, heard.frames)
            while len(cut) >= AT_ONCE:
                given += self._hand_over(cutting, given, cut[:AT_ONCE], text)
                del cut[:AT_ONCE]
            yield samples
        cut += cutter.finish()
        if cut:
            self._hand_over(cutting, given, cut, text)

    def _hand_over(self, cutting: Cutting, first: int, cut: list[Window], text: str) -> int:
        audio = AudioEmbedding.stack([window.audio for window in cut])
        spans = np.array([(window.start_s, window.end_s) for window in cut])
        fused = Words(self._encoder).fuse(audio, [text] * len(cut))
        cutting.take(EncodedWindows(first, spans, audio.pooled, fused))
        return len(cut)

    def fuse(self, sound: str, audio: Floats, text: str) -> EncodedItem:
        """Fuse a stored audio vector with a text."""
        del sound
        return self._fuse(AudioEmbedding(np.array(audio, np.float32)[None]), text)

    def fuse_windows(self, sound: str, audio: Floats, text: str) -> Fused:
        """Fuse stored audio vectors of windows with a text."""
        del sound
        return Words(self._encoder).fuse(AudioEmbedding(audio), [text] * len(audio))

    def _fuse(self, embedding: AudioEmbedding, text: str) -> EncodedItem:
        fused = self._encoder.fuse(embedding, [text])
        return EncodedItem(embedding.pooled[0], fused.vectors[0], float(fused.norms[0]))
