"""Which batches are worth their size, measured on the device itself."""

import time
from contextlib import suppress

import numpy as np

from audiofuse.core.audio.windows import WINDOW_S, WINDOW_SAMPLES
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.runtime import OutOfMemory

SIZES = {  # of batches, in windows, that are tried; the memory of the largest stays taken
    "cpu": (4, 8, 16),  # smaller ones cost the encoder little, but texts gather during a batch
    "cuda": (1, 2, 4, 8, 16, 32, 64, 128, 256),
}
REPEATS = 5  # of each, of which the best counts: other work only ever makes it slower
MEASURE_S = 2.0  # for all of them
NEARLY = 0.97  # of the best rate: a smaller batch that reaches it is preferred, as it waits less


def best_batch_s(encoder: Encoder) -> float:
    """Measure which batch of whole windows is worth its size; return it in seconds of audio.

    That is the smallest that is nearly as fast as the fastest. Sizes are tried round after round,
    so that a busy moment of the machine does not decide between them.
    """
    noise = np.random.default_rng(0).random(WINDOW_SAMPLES, np.float32)
    encoder.encode_windows([noise])  # warms up
    deadline = time.monotonic() + MEASURE_S
    rates: dict[int, float] = {}  # windows a second, by windows in a batch
    for size in SIZES[encoder.device] * REPEATS:
        started = time.monotonic()
        if rates and started + size / max(rates.values()) > deadline:
            continue
        with suppress(OutOfMemory):
            encoder.encode_windows([noise] * size)
            rates[size] = max(rates.get(size, 0), size / (time.monotonic() - started))
    enough = NEARLY * max(rates.values(), default=0)
    return float(WINDOW_S) * min((n for n, rate in rates.items() if rate >= enough), default=1)
