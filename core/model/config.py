"""Everything that an encoder is made with beside its weights: ``config.json`` of a bundle."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from audiofuse.core.audio.windows import WINDOW_S
from audiofuse.core.errors import ConfigurationError
from audiofuse.core.model.relevance import Relevance

MEL_BANDS = 128
HOP_SAMPLES = 320  # 10 ms
MAX_FRAMES = 192  # 60 s; the authors' longest sequence. Longer sounds are averaged down to it
SHORTEST_S, LONGEST_S = 1.0, 60.0  # a second is three frames; in a minute no sound has its place

Classifier = Literal["mlp", "fully_convolutional"]
Fusion = Literal["late", "mid", "audio", "metadata"]
Head = Literal["linear", "anchors", "none"]
Pooling = Literal["cls", "mean"]


class AudioConfig(BaseModel):
    """Shape of the audio tower, and the head that brings its vector into the shared space.

    ``head`` is a linear projection, or an embedding for each AudioSet class (``ClassHead``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    width: float = Field(ge=0.1, le=4.0)
    head: Literal["linear", "classes"] = "linear"
    classifier: Classifier = "mlp"
    strides: tuple[int, int, int, int] = (2, 2, 2, 2)
    mel_bands: int = Field(default=MEL_BANDS, ge=40, le=256)
    hop_samples: int = Field(default=HOP_SAMPLES, ge=160, le=800)


class TextConfig(BaseModel):
    """Shape of the text tower; ``bert`` is its Hugging Face configuration.

    ``head`` brings its vector into the shared space: a linear projection, ``anchors``
    (``AnchorHead``), or none at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    bert: dict[str, Any]
    pooling: Pooling = "cls"
    max_tokens: int = Field(default=32, ge=3, le=512)
    head: Head = "linear"


class MidShape(BaseModel):
    """Shape of the mid-level transformer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layers: int = Field(default=2, ge=1)
    width: int = Field(default=768, gt=0, multiple_of=2)
    heads: int = Field(default=12, ge=1)
    feedforward: int = Field(default=2048, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)


class Preprocessing(BaseModel):
    """How sounds are cut and padded and texts normalised; a bundle keeps what it was made with.

    The defaults are what bundles mean that do not say. What admits one value only is done in that
    way by this version; a bundle that was made in another is refused instead of misread.

    ``padding_s``: windows are padded with zeros to a multiple of so many seconds. What is padding
    is no part of the vector, but the audio tower sees it. ``silence_s``: silence that is appended
    to a sound and heard as part of it, as far as its last window has room.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    sample_rate: Literal[32000] = 32000  # Hz
    window_s: Literal[10] = 10
    padding_s: float = Field(default=1.0, gt=0, le=WINDOW_S)
    silence_s: float = Field(default=0.0, ge=0, le=WINDOW_S)
    silent_below_db: Literal[-80] = -80  # of full scale; such sounds are refused
    text: Literal["lower case, no punctuation"] = "lower case, no punctuation"  # query.normalise


@dataclass(frozen=True)
class Grid:
    """The windows of a recording: of ``window_s`` seconds, one beginning every ``hop_s``.

    Shorter windows place a sound better and hear less of it; a shorter hop makes more of them.
    """

    window_s: float = 5.0
    hop_s: float = 5.0

    def __post_init__(self) -> None:
        """Raise ``ConfigurationError`` for lengths that make no windows."""
        if not SHORTEST_S <= self.window_s <= LONGEST_S:
            raise ConfigurationError(
                f"a window of {self.window_s:g} s: it must be {SHORTEST_S:g} to {LONGEST_S:g} s"
            )
        if not SHORTEST_S <= self.hop_s <= self.window_s:
            raise ConfigurationError(
                f"a hop of {self.hop_s:g} s: it must be {SHORTEST_S:g} s to the window's length, "
                f"{self.window_s:g} s"
            )

    def __str__(self) -> str:
        """Name it, in seconds: window/hop."""
        return f"{self.window_s:g}/{self.hop_s:g}"

    def count(self, duration_s: float) -> int:
        """Return how many windows a recording has.

        A rest of less than half a hop belongs to the last window. A recording of one window or
        less has none: its item says it all.
        """
        hops = math.floor((duration_s - self.window_s) / self.hop_s - 0.5)
        return hops + 2 if hops >= 0 else 0


class MomentShape(BaseModel):
    """The windows of which moments are made, as in ``Grid``, and how they are joined.

    ``slack`` is how much less than its best window (cosine) a neighbour may score and still be the
    same moment: more makes longer moments of steady sounds and swallows what follows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    window_s: float = Grid.window_s
    hop_s: float = Grid.hop_s
    slack: float = Field(default=0.02, ge=0, le=2)  # measured in DECISIONS.md

    @model_validator(mode="after")
    def _makes_windows(self) -> Self:
        try:
            Grid(self.window_s, self.hop_s)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def grid(self) -> Grid:
        """The windows alone."""
        return Grid(self.window_s, self.hop_s)


class EncoderConfig(BaseModel):
    """Everything needed to rebuild an encoder around its weights.

    ``metadata`` is a text tower of its own for metadata; without it the queries' tower reads both,
    which the paper finds better. ``absent`` says what late fusion adds for an item without
    metadata: nothing, so that it is its ``audio`` alone, or the vector of the ``empty`` text, as
    the authors do. ``relevance`` is what scores mean; without it that is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    fusion: Fusion = "late"
    absent: Literal["audio", "empty"] = "audio"
    dim: int = Field(default=1024, gt=0)
    audio: AudioConfig
    text: TextConfig
    metadata: TextConfig | None = None
    mid: MidShape = MidShape()
    moments: MomentShape = MomentShape()
    preprocessing: Preprocessing = Preprocessing()
    relevance: Relevance | None = None

    @property
    def uses_audio(self) -> bool:
        """Whether an item depends on its sound at all."""
        return self.fusion != "metadata"

    @property
    def grid(self) -> Grid | None:
        """The windows of its moments; none where an item does not depend on its sound."""
        return self.moments.grid if self.uses_audio else None

    @property
    def places_metadata(self) -> bool:
        """Whether metadata alone has a vector in the shared space.

        Mid fusion's separate tower has none: only its tokens are used, and no head is trained.
        """
        return self.fusion != "mid" or self.metadata is None

    @property
    def fuses_stored_audio(self) -> bool:
        """Whether the stored audio vector suffices to fuse anew; mid fusion needs the frames."""
        return self.fusion != "mid"


# The smallest encoder that goes through every line of the real one, for tests. No two of its widths
# are equal, as in real ones, so that whatever mistakes one for another fails.
TINY = EncoderConfig(
    dim=16,
    audio=AudioConfig(width=0.1),
    text=TextConfig(
        bert={
            "model_type": "bert",
            "vocab_size": 128,
            "hidden_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 20,
        }
    ),
    mid=MidShape(layers=1, width=8, heads=2, feedforward=28),
)
