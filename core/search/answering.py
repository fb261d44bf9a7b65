"""Asking the index for what many threads want at once, and for one question's hits."""

import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from typing import Self

from audiofuse.core.batcher import Batcher
from audiofuse.core.encoder.embeddings import Floats
from audiofuse.core.index.index import Generation, Index, Nearest, Point
from audiofuse.core.query import CANDIDATES, Question
from audiofuse.core.search.hits import Hit
from audiofuse.core.search.loaded import LoadedEncoder
from audiofuse.core.search.ranking import Ranking
from audiofuse.core.search.recordings import Recordings

# Questions that one call to the index asks. Higher: fewer calls under load; lower: less memory.
QUERIES_AT_ONCE = 32
# Most hits of a question that is asked together with others. Higher: fewer calls to the index;
# lower: shorter waits for small questions, which are answered with the largest of their call.
TOGETHER = CANDIDATES
# Questions whose items are asked for while their moments are. Higher: more threads under load.
BESIDE = 32

Asked = tuple[Generation, Nearest]


class Answering:
    """Asks the index for what is nearest. Many threads may ask at once."""

    def __init__(self, index: Index) -> None:
        """Ask ``index``."""
        self._index = index
        self.recordings = Recordings(index)
        self._together = Batcher[Asked, list[Point]](self._find, QUERIES_AT_ONCE)
        self._beside = ThreadPoolExecutor(BESIDE, thread_name_prefix="items")
        self._large = threading.Lock()  # one large answer at a time: a thousand hits are 10 MB

    def over(self, index: Index) -> Self:
        """Return what asks a view of the index, together with all who ask that index."""
        view = copy(self)
        view._index = index  # noqa: SLF001 - one of ours
        view.recordings = self.recordings.over(index)
        return view

    def hits(
        self, generation: Generation, encoder: LoadedEncoder, question: Question, query: Floats
    ) -> list[Hit]:
        """Return the hits of a question that comes down to ``query`` ``(dim,)``, of unit length."""
        if question.like:
            besides = (*question.where.besides, question.like)
            question = replace(question, where=replace(question.where, besides=besides))
        ranking = Ranking(
            self._index, self.recordings, self._nearest, self._begin, generation, encoder, question,
            query,
        )  # fmt: skip
        if not self.recordings.exist(generation):
            return ranking.by_items()
        return ranking.by_moments() if question.moments else ranking.by_recordings()

    def _begin(self, generation: Generation, asked: Nearest) -> Future[list[Point]]:
        """Ask for items in another thread, so that this one can ask for their moments meanwhile."""
        return self._beside.submit(self._nearest, generation, asked)

    def _nearest(self, generation: Generation, asked: Nearest) -> list[Point]:
        """Ask for few hits together with other threads, for many alone and one after the other."""
        asked = replace(asked, where=self._index.bounded(asked.where))
        if asked.limit <= TOGETHER:
            return self._together((generation, asked))
        with self._large:
            (points,) = self._find([(generation, asked)])
        return points

    def _find(self, asked: list[Asked]) -> list[list[Point]]:
        """Ask what threads ask at once in one call, or one for each generation during a switch."""
        answers = {
            generation: iter(self._index.search(generation, [one for _, one in same]))
            for generation, same in _by_generation(asked).items()
        }
        return [next(answers[generation]) for generation, _ in asked]


def _by_generation(asked: Iterable[Asked]) -> dict[Generation, list[Asked]]:
    groups: dict[Generation, list[Asked]] = {}
    for each in asked:
        groups.setdefault(each[0], []).append(each)
    return groups
