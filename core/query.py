"""What may be asked: a sentence with words in it. Light, so that every front end can say so."""

import string

from core.errors import QueryError

MAX_QUERY_CHARACTERS = 1000  # the tower reads 32 tokens; anything this long is a mistake
MAX_TOP = 1000

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower-case and drop ASCII punctuation, as arXiv 2406.15897 does for queries and metadata."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def check_query(text: str, top: int) -> None:
    """Raise ``QueryError`` if nothing can be found by ``text``, or ``top`` is no number of hits."""
    if not normalise(text):
        raise QueryError("the query has no words: describe a sound, e.g. 'a dog barking'")
    if len(text) > MAX_QUERY_CHARACTERS:
        raise QueryError(f"the query has {len(text)} characters; at most {MAX_QUERY_CHARACTERS}")
    if not 1 <= top <= MAX_TOP:
        raise QueryError(f"top must be from 1 to {MAX_TOP}, not {top}")
