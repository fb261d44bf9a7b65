"""How probable it is that hits are what a question means, and which are probable enough."""

from collections.abc import Sequence
from dataclasses import replace

from audiofuse.core.errors import QueryError
from audiofuse.core.model.relevance import Relevance
from audiofuse.core.query import CANDIDATES, Question
from audiofuse.core.search.hits import Hit

# A recording of more moments, a minute as a rule, is a long one, of which less is claimed.
# Higher: more questions are told that nothing answers them, also wrongly. Measured in DECISIONS.md.
MOST_MOMENTS = 12


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
    that is not by words alone, on pages behind the first, and where only long recordings might
    answer it: a faint event in one of them scores no better than others do.
    """
    if relevance is None or not question.is_by_words or not hits:
        return list(hits), None
    known = [replace(hit, relevance=_probability(hit, relevance)) for hit in hits]
    nothing = _nothing(known, relevance)
    least = question.min_relevance
    if least is None:
        return known, None if question.offset else nothing
    probable = [hit for hit in known if (hit.relevance or 0) >= least]
    return probable[question.offset : question.offset + question.limit], nothing


def _probability(hit: Hit, relevance: Relevance) -> float:
    worded = hit.payload["has_text"] == "yes"
    return relevance.of(hit.score, has_words=worded, is_long=_is_long(hit))


def _nothing(hits: Sequence[Hit], relevance: Relevance) -> bool | None:
    if max(hit.relevance or 0 for hit in hits) >= relevance.nothing_below:
        return False
    return None if any(map(_is_long, hits)) else True


def _is_long(hit: Hit) -> bool:
    return bool(hit.payload.get("moments", 0) > MOST_MOMENTS)
