"""How probable it is that hits are what a question means, and which are probable enough."""

from collections.abc import Sequence
from dataclasses import replace

from audiofuse.core.errors import QueryError
from audiofuse.core.model.relevance import Relevance
from audiofuse.core.query import CANDIDATES, Question
from audiofuse.core.search.hits import Hit


def widened(question: Question, relevance: Relevance | None) -> Question:
    """Return what to ask so that enough hits come to choose the probable ones from.

    Raises ``QueryError`` when probable ones are wanted, and there is no calibration to tell them.
    """
    if question.min_relevance is None:
        return question
    if relevance is None:
        raise QueryError(
            "the live encoder has no calibration, so that no score tells how probable a hit is: "
            "leave out min_relevance, or have one fitted (audiofuse-train calibrate)"
        )
    return replace(question, min_relevance=None, offset=0, limit=CANDIDATES)


def judged(
    hits: Sequence[Hit], question: Question, relevance: Relevance | None
) -> tuple[list[Hit], bool | None]:
    """Return a question's page of what ``widened`` found, and whether nothing there answers it.

    The latter is ``None`` where that is not known: without hits or a calibration, of a question
    that is not by words alone, and on pages behind the first.
    """
    if relevance is None or not question.is_by_words or not hits:
        return list(hits), None
    known = [replace(hit, relevance=_probability(hit, relevance)) for hit in hits]
    nothing = max(hit.relevance or 0 for hit in known) < relevance.nothing_below
    least = question.min_relevance
    if least is None:
        return known, None if question.offset else nothing
    probable = [hit for hit in known if (hit.relevance or 0) >= least]
    return probable[question.offset : question.offset + question.limit], nothing


def _probability(hit: Hit, relevance: Relevance) -> float:
    return relevance.of(hit.score, has_words=hit.payload["has_text"] == "yes")
