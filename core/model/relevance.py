"""From a hit's score to the probability that it is what a question means: a version's calibration.

A cosine says little by itself: .4 is much for a sound without words and little for one with them.
So there are two curves, each a logistic function of the score, fitted on judged questions by words
(``trainer/training/calibration.py``).
"""

import math

from pydantic import BaseModel, ConfigDict, Field


class Curve(BaseModel):
    """A logistic function: ``1 / (1 + exp(-(slope * score + offset)))``. It never falls."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    slope: float = Field(ge=0)
    offset: float

    def at(self, score: float) -> float:
        """Return the probability at a score."""
        return (1 + math.tanh((self.slope * score + self.offset) / 2)) / 2  # never overflows


class Relevance(BaseModel):
    """The calibration of one version, for questions by words alone.

    ``worded`` is for hits with metadata, ``wordless`` for those without. A question of which no hit
    is as probable as ``nothing_below`` is answered by nothing that there is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    worded: Curve
    wordless: Curve
    nothing_below: float = Field(ge=0, le=1)

    def of(self, score: float, *, has_words: bool, is_long: bool = False) -> float:
        """Return the probability, from 0 to 1, that a hit of this score is what is meant.

        Words of a long recording need not be about what is heard in one moment of it, so they make
        none improbable.
        """
        bare = self.wordless.at(score)
        if not has_words:
            return bare
        worded = self.worded.at(score)
        return max(worded, bare) if is_long else worded
