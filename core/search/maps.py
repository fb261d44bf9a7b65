"""A map of what there is: items on a plane, by chance where there are many.

It is drawn when somebody first looks, in a thread, and kept until another encoder is live or items
came and went: first by the two directions in which items differ most, within seconds, then anew by
who is whose neighbour.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from audiofuse.core.encoder.embeddings import Floats
from audiofuse.core.errors import Unavailable
from audiofuse.core.index.index import ITEM, Generation, Index, Point
from audiofuse.core.query import EVERYTHING
from audiofuse.core.search.layout import laid_out, principal, spread
from audiofuse.core.search.search import Searcher

log = logging.getLogger(__name__)

# Items on a map. Higher: more of them are seen, and it takes longer than in proportion.
MOST_ITEMS = 5000
ITEMS_AT_ONCE = 500  # whose vectors the index is asked for, 12 kB of JSON each
# A map is not drawn anew before it is so old. Longer: less work while many items come.
REDRAWN_S = 600
FIELDS = ("bucket", "key", "title", "labels", "keywords", "duration_s", "size")


@dataclass(frozen=True)
class Map:
    """Items and their places ``(n, 2)``, within -1 and 1; ``count`` is how many items there are.

    ``number`` tells this map from any before it. One that is not final will be replaced soon.
    """

    number: int
    encoder: str
    count: int
    points: Sequence[Point]
    places: Floats
    drawn_s: float  # on the monotonic clock
    is_final: bool = False


class Maps:
    """The map of what a searcher searches. Many threads may look at once."""

    def __init__(self, searcher: Searcher, lay_out: Callable[[Floats], Floats] = laid_out) -> None:
        """``lay_out`` makes places ``(n, 2)`` of item vectors ``(n, dim)``."""
        self._with_index = searcher.with_index
        self._lay_out = lay_out
        self._numbers = count(1)
        self._lock = threading.Lock()  # around what follows
        self._map: Map | None = None
        self._is_drawing = False
        self._error: Exception | None = None

    def look(self) -> Map | None:
        """Return the map as far as it is drawn; ``None`` until its first form is.

        Raises ``Unavailable`` once if it could not be drawn; whoever looks then begins anew.
        """
        version = self._with_index(lambda _, live: live.version)
        with self._lock:
            if self._error:
                error, self._error = self._error, None
                raise Unavailable(f"the map could not be drawn: {error}") from error
            if not self._is_drawing and version and self._is_outdated(version):
                self._is_drawing = True
                threading.Thread(target=self._draw, name="map", daemon=True).start()
            return self._map if self._map and self._map.encoder == version else None

    def _is_outdated(self, version: str) -> bool:
        drawn = self._map
        if drawn is None or drawn.encoder != version:
            return True
        if time.monotonic() - drawn.drawn_s < REDRAWN_S:
            return False
        return drawn.count != self._with_index(lambda index, live: index.count(live))

    def _draw(self) -> None:
        try:
            self._with_index(self._draw_from)
        except Exception as error:  # noqa: BLE001 - it is told to who looks, and the thread ends
            log.warning("the map could not be drawn: %s", error)
            with self._lock:
                self._error = error
        finally:
            with self._lock:
                self._is_drawing = False

    def _draw_from(self, index: Index, live: Generation) -> None:
        sampled = index.sample(live, FIELDS, EVERYTHING, MOST_ITEMS)
        points, vectors = _with_vectors(index, live, sampled)
        rough = spread(principal(vectors, 2)) if points else np.zeros((0, 2), np.float32)
        drawn = Map(
            next(self._numbers), live.version, index.count(live), points, rough, time.monotonic()
        )
        if self._map is None or self._map.encoder != live.version:
            self._show(drawn)  # else the one before is better until this one is final
        places = spread(self._lay_out(vectors)) if points else rough
        self._show(replace(drawn, number=next(self._numbers), places=places, is_final=True))

    def _show(self, drawn: Map) -> None:
        with self._lock:
            self._map = drawn


def _with_vectors(
    index: Index, live: Generation, points: Sequence[Point]
) -> tuple[list[Point], Floats]:
    """Return those of the points that are still there, and their item vectors ``(n, dim)``."""
    found: dict[str, Floats] = {}
    for at in range(0, len(points), ITEMS_AT_ONCE):
        ids = [each.id for each in points[at : at + ITEMS_AT_ONCE]]
        some = index.get(live, ids, vectors=(ITEM,), fields=("key",))
        found |= {id_: np.array(point.item, np.float32) for id_, point in some.items()}
    there = [each for each in points if each.id in found]
    return there, np.array([found[each.id] for each in there], np.float32)
