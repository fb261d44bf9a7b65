"""The moments of recordings beside their items: which there are, and where a question is heard.

    items   ──> nearest by item ────┐
                                    ├──> each recording by the better of both ──> a page of them,
    moments ──> nearest, one each ──┘                                             with its moments

A moment whose item does not name its state is on its way in or out, and is not shown.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple, Self

import numpy as np

from audiofuse.core.encoder.embeddings import Floats
from audiofuse.core.index.index import (
    AUDIO,
    ITEM,
    MOMENT_FIELDS,
    Generation,
    GenerationGone,
    Index,
    Nearest,
    Point,
)
from audiofuse.core.items import moment_id
from audiofuse.core.moments.moments import Moment, best_moments

# How long it is taken for known whether a generation has moments. Longer: the first ones of an
# index are found later; shorter: more is asked where nobody has long recordings.
LOOK_S = 2.0
# Windows of a recording from which its moments are made: more make longer moments of what lasts.
OF_EACH = 12
WEIGHED_OF_EACH = 4  # the same where each must come with its vectors, some 10 kB
MOST_WINDOWS = 50_000  # of a timeline: 69 hours of windows of five seconds
BOTH = (ITEM, AUDIO)  # the vectors that what is ranked anew comes with
TRIES = 3  # to get a page full where moments are on their way


class ComeWith(NamedTuple):
    """What items come with: payload fields, at least those of ``STATES``, and vectors."""

    fields: Sequence[str]
    vectors: Sequence[str] = ()


# What tells which moments are an item's, and by what its score was divided.
STATES = ComeWith(("moments", "moments_state", "item_norm"))

Heard = tuple[Moment, Point]  # a moment, and its best window


class Recordings:
    """Asks for the moments of a generation."""

    def __init__(self, index: Index) -> None:
        """Ask ``index``."""
        self._index = index
        self._known: dict[Generation, tuple[float, bool]] = {}  # when it was seen, and what

    def over(self, index: Index) -> Self:
        """Return what asks a view of the index, which has moments if that index has."""
        view = copy(self)
        view._index = index  # noqa: SLF001 - one of ours
        return view

    def exist(self, generation: Generation) -> bool:
        """Whether a generation has any moments, as was seen at most ``LOOK_S`` ago."""
        now = time.monotonic()
        if known := self._known.get(generation):
            at, found = known
            if now - at < LOOK_S:
                return found
            self._known[generation] = now, found  # one thread looks; the others go on
        try:
            found = self._index.health(generation.moments).points > 0
        except GenerationGone:  # an older release made it, and no worker has made it whole yet
            found = False
        self._known[generation] = now, found
        return found

    def nearest(
        self, generation: Generation, asked: Nearest, items: Future[list[Point]],
        come_with: ComeWith,
        of_each: int = 1,
    ) -> tuple[dict[str, Point], dict[str, list[Point]]]:  # fmt: skip
        """Return items, and the nearest moments of ``asked.limit`` of them, best first, by item.

        Of each recording these are at most ``of_each``, best first. To the ``items`` that are asked
        for meanwhile are added those whose moments are found; ``come_with`` says what they have.
        """
        known: dict[str, Point] = {}
        best: dict[str, list[Point]] = {}
        besides = asked.where.besides
        for _ in range(TRIES):
            where = replace(asked.where, besides=besides)
            found = self._index.nearest_moments(generation, replace(asked, where=where), of_each)
            # Only now: items are asked for while moments are.
            known = known or {item.id: item for item in items.result()}
            if new := [id_ for id_ in found if id_ not in known]:
                known |= self._index.get(
                    generation, new, fields=come_with.fields, vectors=come_with.vectors
                )
            best = {
                id_: [each for each in points if agrees(each, known[id_].payload)]
                for id_, points in found.items()
                if id_ in known and agrees(points[0], known[id_].payload)
            }
            if len(best) == len(found):
                break
            besides = (*besides, *(found.keys() - best.keys()))
        return known, best

    def windows(
        self, generation: Generation, query: Floats, items: Sequence[str], *, weighed: bool
    ) -> dict[str, list[Point]]:
        """Return the nearest windows of each of some items, with what weighing needs of them."""
        vectors, of_each = (BOTH, WEIGHED_OF_EACH) if weighed else ((), OF_EACH)
        asked = Nearest(query.tolist(), len(items), vectors=vectors)
        return self._index.nearest_moments(generation, asked, of_each, items)

    def at(self, generation: Generation, item: Point, at_s: float) -> Point | None:
        """Return an item's moment in which a second lies, with its vectors.

        ``None`` of a sound without moments, and of one whose moments are on their way.
        """
        count = item.payload.get("moments", 0)
        if not count:
            return None
        moments = generation.moments
        first, second = (moment_id(item.id, number) for number in (0, 1))
        starts = self._index.get(moments, [first, second], fields=["start_s"])
        if len(starts) < 2:  # noqa: PLR2004 - whatever has moments has two
            return None
        hop_s = starts[second].payload["start_s"] - starts[first].payload["start_s"]
        id_ = moment_id(item.id, min(int(at_s // hop_s), count - 1))
        found = self._index.get(moments, [id_], vectors=[ITEM], fields=MOMENT_FIELDS).get(id_)
        return found if found and agrees(found, item.payload) else None

    def timeline(self, generation: Generation, item: Point, query: Floats) -> list[Moment]:
        """Return the score of each of an item's windows; of all of it, if it has no moments."""
        payload = item.payload
        if not (count := payload.get("moments", 0)):
            score = float(np.array(item.item, np.float32) @ query)
            return [Moment(0.0, payload["duration_s"], score)]
        state, most = payload["moments_state"], min(count, MOST_WINDOWS)
        found = self._index.scored_moments(generation, item.id, state, query.tolist(), most)
        return [_moment(each) for each in found]


def agrees(moment: Point, item: Mapping[str, Any]) -> bool:
    """Whether an item, given by its payload, names a moment as one of its own."""
    state, number = moment.payload["state"], moment.payload["number"]
    return bool(state == item.get("moments_state") and number < item["moments"])


def joined(points: Sequence[Point], slack: float) -> list[Heard]:
    """Return the moments that some windows of a recording make, each with its best window."""
    in_order = sorted(points, key=lambda each: each.payload["number"])
    windows = [_moment(each) for each in in_order]
    spans = np.array([(each.start_s, each.end_s) for each in windows]).reshape(-1, 2)
    scores = np.array([each.score for each in windows], np.float32)
    moments = best_moments(spans, scores, slack)
    return [(moment, in_order[_best(windows, moment)]) for moment in moments]


def _best(windows: Sequence[Moment], within: Moment) -> int:
    """Return the number of the best window of a moment; of equal ones it is the earlier."""
    inside = [
        number
        for number, each in enumerate(windows)
        if within.start_s <= each.start_s and each.end_s <= within.end_s
    ]
    return max(inside, key=lambda number: windows[number].score)


def _moment(window: Point) -> Moment:
    return Moment(window.payload["start_s"], window.payload["end_s"], window.score)
