"""What a deployment knows: its sounds as the live index has them, and what listeners said.

Nothing is downloaded and no sound is heard: each point keeps the audio vector of its sound, and the
words of its sidecar. A verdict counts while the sound is the very one that was judged.
"""

import heapq
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from audiofuse.core.encoder.embeddings import Floats
from audiofuse.core.errors import ConfigurationError, Rejected
from audiofuse.core.evaluation.clips import Clip, clip_of
from audiofuse.core.feedback.book import open_book
from audiofuse.core.feedback.verdicts import Opinion, Verdict, standing
from audiofuse.core.index.index import AUDIO, Generation, Index, open_index
from audiofuse.core.items import Metadata
from audiofuse.core.query import normalise
from audiofuse.core.settings import Settings

log = logging.getLogger(__name__)

PAGE = 256  # points fetched at once, with an audio vector of some kB each
FIELDS = (
    "key", "etag", "content_hash", "title", "description", "keywords", "labels", "extra",
)  # fmt: skip


class Sound(NamedTuple):
    """One item: its words as a clip, and its audio vector ``(channels,)``.

    Sounds of one ``clip.identity`` are the same: that of the sidecar, or the hash of the content.
    ``clip.collection`` is the folder at the root of the bucket that it lies in.
    """

    id: str
    etag: str
    clip: Clip
    audio: Floats

    @property
    def tags(self) -> tuple[str, ...]:
        """Its labels and keywords, each once."""
        known = self.clip.metadata
        return tuple(dict.fromkeys((*known.labels, *known.keywords)))

    @property
    def sentences(self) -> tuple[str, ...]:
        """Title, description and captions, those that have words."""
        known = self.clip.metadata
        own = (known.title, known.description, *self.clip.captions)
        return tuple(text for text in own if normalise(text))


Verdicts = dict[str, dict[int, bool]]  # by a question's normalised words: whether a sound fits


@dataclass(frozen=True)
class Archive:
    """Sounds, and by question which of them, by their number, fit and which do not."""

    version: str
    sounds: Sequence[Sound]
    verdicts: Verdicts

    @property
    def count(self) -> int:
        """How many verdicts there are."""
        return sum(map(len, self.verdicts.values()))


def read_archive(settings: Settings, most: int) -> Archive:
    """Read the live index and the book of verdicts: at most ``most`` sounds.

    Those with verdicts come first, then others by the hash of their content, the same each time.
    Raises ``ConfigurationError`` if nothing is live yet, and ``Unavailable``.
    """
    index = open_index(settings)
    live = index.live()
    if live is None:
        raise ConfigurationError("nothing is live yet: index sounds first")
    verdicts = standing(open_book(settings).read())
    chosen = _chosen(index, live, {each.item for each in verdicts}, most)
    sounds = [sound for sound in _sounds(index, live, chosen) if sound.audio.any()]
    return Archive(live.version, sounds, joined(sounds, verdicts))


def joined(sounds: Sequence[Sound], verdicts: Iterable[Verdict]) -> Verdicts:
    """Return by question what is said of these sounds, as they are now, by verdicts that hold.

    The newest one counts, which is the last.
    """
    rows = {(sound.id, sound.etag): row for row, sound in enumerate(sounds)}
    found: Verdicts = {}
    for verdict in verdicts:
        row, words = rows.get((verdict.item, verdict.etag)), normalise(verdict.text)
        if row is not None and words:
            found.setdefault(words, {})[row] = verdict.opinion is not Opinion.MISSES
    return found


def _chosen(index: Index, live: Generation, judged: set[str], most: int) -> list[str]:
    def rank(each: tuple[str, str]) -> tuple[bool, str, str]:
        content, id_ = each
        return id_ not in judged, content, id_

    points = index.scroll(live, ("content_hash",))
    known = ((str(point.payload.get("content_hash", "")), point.id) for point in points)
    return sorted(id_ for _, id_ in heapq.nsmallest(most, known, key=rank))


def _sounds(index: Index, live: Generation, ids: Sequence[str]) -> Iterator[Sound]:
    for start in range(0, len(ids), PAGE):
        page = ids[start : start + PAGE]
        points = index.get(live, page, vectors=[AUDIO], fields=FIELDS)
        for id_ in page:
            if point := points.get(id_):  # else it has gone meanwhile
                audio = np.array(point.audio, np.float32)
                yield Sound(id_, point.payload["etag"], _clip(point.payload), audio)


def _clip(payload: Any) -> Clip:
    """Return what a point says of its sound, with the captions that its sidecar has."""
    metadata = Metadata(
        title=payload.get("title") or "",
        description=payload.get("description") or "",
        keywords=tuple(payload.get("keywords") or ()),
        labels=tuple(payload.get("labels") or ()),
        extra=payload.get("extra") or {},
    )
    key, content = payload["key"], payload.get("content_hash") or payload["key"]
    try:
        clip = clip_of(Path(key), content, metadata)
    except Rejected as error:
        log.warning("%s: its captions are left out: %s", key, error)
        clip = clip_of(Path(key), content, replace(metadata, extra={}))
    folders = PurePosixPath(key).parts[:-1]
    return replace(clip, collection=folders[0] if folders else "")
