"""Encoders of questions: what many threads ask of one."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from audiofuse.core.audio.windows import Samples
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.search.loaded import LoadedEncoder


def test_a_slow_sound_holds_up_no_other(tiny_encoder: Encoder) -> None:
    """While a question's sound is still decoding, that of another is answered."""
    encoder, began, go_on = LoadedEncoder(tiny_encoder), threading.Event(), threading.Event()
    second = np.ones(32_000, dtype=np.float32)

    def windows() -> Iterator[Samples]:
        began.set()
        assert go_on.wait(60)
        yield second

    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(encoder.encode_audio, windows())
        assert began.wait(60)
        other = pool.submit(encoder.encode_audio, [second])
        try:
            answer = other.result(timeout=60)
            assert not slow.done()
        finally:
            go_on.set()
        assert slow.result().tolist() == answer.tolist()
