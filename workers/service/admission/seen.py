"""What a caller may see of the index: routes have no other way to it."""

from functools import cache

from fastapi import Request

from audiofuse.core.search.search import Searcher
from audiofuse.workers.service.admission.keys import Caller


class Seen:
    """A searcher as each caller may see it."""

    def __init__(self, searcher: Searcher) -> None:
        """Let ``searcher`` be seen."""
        self._within = cache(searcher.within)  # for each part that a key is limited to

    def by(self, request: Request) -> Searcher:
        """Return the searcher that has nothing but what this request's caller may see."""
        caller: Caller = request.state.caller
        return self._within(caller.places)
