"""Windows of sound, in which all that is decoded is handed on; decoding itself is ``recording``."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 32_000  # Hz, what the audio tower hears
WINDOW_S = 10  # the audio tower was trained on windows of this length
WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE

Samples = NDArray[np.float32]


class OpenSound(Protocol):
    """A sound file that is open: a ``Recording``, or one that another process decodes."""

    sample_rate: int
    channels: int

    @property
    def duration_s(self) -> float:
        """Seconds decoded so far."""

    def windows(self) -> Iterator[Samples]:
        """Yield the clip in windows."""


Opener = Callable[[Path, float], AbstractContextManager[OpenSound]]  # and the longest duration, s
