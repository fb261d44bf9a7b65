"""Hearing a recording once: its item, and its windows, each fused with the same metadata.

A window is fused like an item: in late fusion the sum of its own audio and the metadata's vector,
in mid fusion from its own frames with the metadata's tokens, by an ``audio`` encoder from its sound
alone. A ``metadata`` encoder hears nothing, so that to it a recording has an item and no windows.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.accumulator import AudioAccumulator
from audiofuse.core.encoder.embeddings import AudioEmbedding, Floats, WindowEmbedding
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.moments import Spans
from audiofuse.core.moments.windows import Window, WindowCutter
from audiofuse.core.moments.words import Words

WINDOWS_PER_FUSION = 64  # bounds memory; more is hardly faster


@dataclass(frozen=True)
class Heard:
    """A recording's item, and its windows.

    ``item`` float32 ``(dim,)`` and ``vectors`` ``(windows, dim)`` are of unit length, or NaN where
    the encoder uses nothing of what there is; ``spans`` ``(windows, 2)`` are in seconds. One of no
    more than one window has none.
    """

    duration_s: float
    item: Floats
    spans: Spans
    vectors: Floats


def hear(encoder: Encoder, windows: Iterable[Samples], text: str, grid: Grid) -> Heard:
    """Encode a recording, given in windows of 10 s as ``Recording.windows`` yields them, once.

    ``text`` is its metadata's, "" for none. However long the recording, what is kept of it are the
    vectors of its windows; the rest of memory is a batch. ``ValueError`` if there is no window.
    """
    accumulator = AudioAccumulator(encoder.audio_dim)
    cutter = WindowCutter(grid, keeps_frames=encoder.config.fusion == "mid")
    cut, words = _cut(encoder, windows, accumulator, cutter), Words(encoder)
    spans, vectors = [], [np.zeros((0, encoder.dim), np.float32)]
    while batch := list(itertools.islice(cut, WINDOWS_PER_FUSION)):
        if encoder.config.uses_audio:
            spans += [(window.start_s, window.end_s) for window in batch]
            audio = AudioEmbedding.stack([window.audio for window in batch])
            vectors.append(words.fuse(audio, [text] * len(batch)).vectors)
    item = encoder.fuse(accumulator.embedding(), [text]).vectors[0]
    return Heard(cutter.duration_s, item, np.array(spans).reshape(-1, 2), np.concatenate(vectors))


def _cut(
    encoder: Encoder,
    windows: Iterable[Samples],
    accumulator: AudioAccumulator,
    cutter: WindowCutter,
) -> Iterator[Window]:
    mid = encoder.config.fusion == "mid"
    for number, (samples, embedding) in enumerate(encoder.encode_each(windows, frames=True)):
        assert embedding.frames is not None
        heard_length = encoder.audio_processor.heard_length(samples)
        yield from cutter.add(samples.size, heard_length, embedding.frames)
        # Only mid fusion makes its item of frames; others would average them for nothing.
        kept = embedding if mid else WindowEmbedding(embedding.total, embedding.steps)
        accumulator.add(number, kept)
    yield from cutter.finish()
