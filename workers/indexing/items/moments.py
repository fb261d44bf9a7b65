"""The moments of one item: written while it is heard, fused anew, counted, and taken away.

    heard ──> drafts, in portions ──> sealed, once all is heard ──┐
    words changed ──> stored ones are fused anew ─────────────────┴─> the item's point names them
                                                                      ──> what is beyond them goes

Only what an item's point names, by its count and state, is ever shown: no draft, and nothing that
another state of the item left. So whatever order two workers write in, nobody finds a moment of
what is not there; and since a sync counts what its point names, it is written again.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from audiofuse.core.encoder.embeddings import Floats, Fused
from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.index.index import FILTERED, VERSION_KEY, Generation, Point
from audiofuse.core.items import moment_id
from audiofuse.core.model.config import Grid
from audiofuse.core.moments.stored import (
    heard_alike,
    moments_named,
    moments_state,
    names_moments,
)
from audiofuse.core.moments.windows import Cutting, EncodedWindows
from audiofuse.workers.indexing.items.collaborators import Points

DRAFT = "~"  # ends the state of what is written while its recording is heard
# Stored moments that are fused anew at once. Raised, it takes more memory; lowered, more requests.
FUSED_AT_ONCE = 256
WHEN_HEARD = ("duration_s", "content_hash")  # fields that are known once all is heard


class ItemMoments:
    """The moments of one item in one generation, during one sync."""

    def __init__(
        self, points: Points, generation: Generation, item_id: str, grid: Grid | None
    ) -> None:
        """Cut by ``grid``; without one an item is to have no moments."""
        self._points = points
        self._generation = generation
        self._id = item_id
        self._grid = grid
        self._wrote = False

    def agree(self, payload: Mapping[str, Any], *, thorough: bool) -> bool:
        """Whether there are just the moments that the item of this payload is to have.

        For an item that is to have none nothing is asked, unless one is ``thorough`` or this sync
        wrote some.
        """
        named = moments_named(payload, self._grid)
        if not names_moments(payload, named):
            return False
        count, state = named
        if not count:
            return not (thorough or self._wrote) or not self._count()
        return self._count() == self._count(state) == count

    def named(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields by which an item's point names its moments."""
        count, state = moments_named(payload, self._grid)
        return {"moments": count, "moments_state": state}

    def cutting(self, payload: Mapping[str, Any], check: Callable[[], None]) -> Cutting | None:
        """Return how to cut the item while it is heard, and what writes its drafts.

        ``payload`` is the item's, as far as it is known before; ``check`` raises what ends it all
        if the item is another by now.
        """
        if self._grid is None:
            return None
        state = moments_state(payload, self._grid) + DRAFT

        def take(windows: EncodedWindows) -> None:
            check()
            self._write(payload, state, windows)

        return Cutting(self._grid, take)

    def seal(self, payload: Mapping[str, Any]) -> None:
        """Give the drafts of this state what is known now that all is heard: the item's payload."""
        count, state = moments_named(payload, self._grid)
        if count:
            known = {name: payload[name] for name in WHEN_HEARD}
            self._points.seal_moments(
                self._generation, self._id, state + DRAFT, {"state": state, **known}
            )

    def fuse_anew(
        self,
        payload: Mapping[str, Any],
        stored: Callable[[Sequence[str]], Mapping[str, Point]],
        fuse: Callable[[Floats], Fused],
    ) -> bool:
        """Write the moments of an item from what is ``stored`` of them; false if that is not all.

        ``stored`` returns those that exist among some ids, ``fuse`` what their audio vectors give
        with the words of now.
        """
        count, state = moments_named(payload, self._grid)
        for start in range(0, count, FUSED_AT_ONCE):
            numbers = range(start, min(count, start + FUSED_AT_ONCE))
            ids = [moment_id(self._id, number) for number in numbers]
            found = stored(ids)
            known = [found[id_] for id_ in ids if id_ in found]
            if len(known) < len(ids) or not all(_is_heard(each, state) for each in known):
                return False
            audio = np.array([each.audio for each in known], np.float32)
            spans = np.array([(p.payload["start_s"], p.payload["end_s"]) for p in known])
            self._write(payload, state, EncodedWindows(start, spans, audio, fuse(audio)))
        return True

    def tidy(self, known: Point | None, point: Point | None, *, thorough: bool) -> bool:
        """Take away what the item's point does not name; tell whether anything was written.

        ``known`` is the point that was there before. Of an item that has no moments, had none and
        was given none by this sync nothing is asked, unless one is ``thorough``.
        """
        if point is None:
            return self._clear()
        count = point.payload["moments"]
        had_some = known is not None and (thorough or known.payload.get("moments", 0))
        if count or had_some or self._wrote:
            self._points.remove_moments(self._generation, self._id, beyond=count)
        return True

    def _clear(self) -> bool:
        if not self._count():
            return False
        self._points.remove_moments(self._generation, self._id)
        return True

    def _count(self, state: str | None = None) -> int:
        return self._points.count_moments(self._generation, self._id, state)

    def _write(self, payload: Mapping[str, Any], state: str, windows: EncodedWindows) -> None:
        if not np.isfinite(windows.fused.vectors).all():
            raise Rejected(Reason.NOT_FINITE, "the encoder gives no finite vector for a part of it")
        filtered = {name: payload[name] for name in FILTERED if name in payload}
        vectors, sounds = _rows(windows.fused.vectors), _rows(windows.audio)
        norms = windows.fused.norms.tolist()
        rows = zip(windows.spans.tolist(), sounds, vectors, norms, strict=True)
        points = [
            Point(
                moment_id(self._id, number),
                {
                    "item": self._id,
                    "number": number,
                    "start_s": start_s,
                    "end_s": end_s,
                    "state": state,
                    "item_norm": norm,
                    VERSION_KEY: self._generation.version,
                    **filtered,
                },
                item=vector,
                audio=audio,
            )
            for number, ((start_s, end_s), audio, vector, norm) in enumerate(rows, windows.first)
        ]
        self._points.upsert(self._generation.moments, points)
        self._wrote = True


def _is_heard(moment: Point, state: str) -> bool:
    """Whether a stored moment has the audio vector of those of a state."""
    return heard_alike(moment.payload["state"], state)


def _rows(vectors: Floats) -> list[Sequence[float]]:
    """Return vectors one by one; a list of all their numbers takes longer than what fuses them."""
    return [array("f", row.astype(np.float32).tobytes()) for row in vectors]
