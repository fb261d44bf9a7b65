"""The gates that a new encoder passes before it goes live, each with what was found.

coverage      the new generation agrees with the bucket, key by key and state by state
dead-letters  the new encoder rejected nothing that the live one holds
quality       on held-out queries the new encoder is not certainly worse, with metadata or without
optimised     Qdrant has built every index of the new generation
services      every query service has loaded the new encoder
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path

import numpy as np

from audiofuse.core.audio.windows import SAMPLE_RATE
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import BundleError, Unavailable
from audiofuse.core.evaluation.clips import Clip, Query, select_queries
from audiofuse.core.evaluation.evaluation import AUDIO, HYBRID, Gallery, encode_clips, judge
from audiofuse.core.evaluation.intervals import FEWEST_IDENTITIES, Estimate, estimate
from audiofuse.core.index.index import Generation, Index
from audiofuse.workers.queue.dead_letters import DeadLetter
from audiofuse.workers.repair.agreement import FOLLOWED, Agreement
from audiofuse.workers.repair.findings import Finding
from audiofuse.workers.service.client import ANYBODY, Access, has_loaded, replicas

SLICES = (AUDIO, HYBRID)  # items without metadata are what ``audio only`` ranks
LETTERS_NAMED = 3


class GateName(StrEnum):
    """What may be forced, by name."""

    COVERAGE = "coverage"
    DEAD_LETTERS = "dead-letters"
    QUALITY = "quality"
    OPTIMISED = "optimised"
    SERVICES = "services"


@dataclass(frozen=True)
class Gate:
    """Whether a gate was passed, and by what."""

    name: GateName
    passed: bool
    found: str


def try_out(encoder: Encoder, version: str) -> None:
    """Have an encoder hear, read and fuse once; ``BundleError`` if that gives no finite vector."""
    second = np.zeros(SAMPLE_RATE, np.float32)
    second[0] = 1.0
    fused = encoder.fuse(encoder.encode_audio([second]), ["a click"])
    if not np.isfinite(fused.vectors).all():
        raise BundleError(f"the encoder {version} gives no finite vectors")


def coverage(agreement: Agreement) -> Gate:
    """Compare bucket and generation in both directions; what is on its way is waited for."""
    with agreement.compare() as comparison:
        found = comparison.counts()
        differing = list(islice(comparison.keys(), FOLLOWED + 1))
    lagging = agreement.lagging(differing)
    parts = [f"{found[Finding.AGREED]} agree", f"{len(lagging)} differ"]
    if on_the_way := len(differing) - len(lagging):
        parts.append(f"{on_the_way} were on their way")
    parts.append(f"{found[Finding.REJECTED]} rejected")
    if lagging:
        parts.append(f"e.g. {lagging[0]}")
    return Gate(GateName.COVERAGE, not lagging, ", ".join(parts))


def dead_letters(rejected: Sequence[DeadLetter]) -> Gate:
    """Judge by what the new encoder alone rejected."""
    named = "".join(f"; {each.key}: {each.reason}" for each in rejected[:LETTERS_NAMED])
    return Gate(GateName.DEAD_LETTERS, not rejected, f"{len(rejected)} rejected by it alone{named}")


def quality(live: Encoder, candidate: Encoder, clips: Sequence[Clip], split: str) -> Gate:
    """Rank the clips for the queries of a split by both encoders, on the same resampled sounds."""
    queries = select_queries(clips, split)
    if _too_few(queries):
        return not_checked(f"too few sounds with queries in the split {split!r}")
    galleries = [encode_clips(encoder, clips) for encoder in (live, candidate)]
    heard = {clip.path for clip in galleries[0].clips} & {clip.path for clip in galleries[1].clips}
    theirs, ours = (_only(gallery, heard) for gallery in galleries)
    identities = {clip.identity for clip in ours.clips}
    asked = [query for query in queries if query.identity in identities]
    if _too_few(asked):
        return not_checked("too few of the sounds can be heard")
    differences = _differences((candidate, ours), (live, theirs), asked)
    found = "; ".join(
        f"{name} mAP@10 {each.value:+.3f} [{each.low:+.3f}, {each.high:+.3f}]"
        for name, each in differences.items()
    )
    passed = all(each.high >= 0 for each in differences.values())
    return Gate(GateName.QUALITY, passed, f"{found}, {len(asked)} queries")


def _too_few(queries: Sequence[Query]) -> bool:
    return len({query.identity for query in queries}) < FEWEST_IDENTITIES


def not_checked(why: str) -> Gate:
    """Return the quality gate as it is when nothing can be said."""
    return Gate(GateName.QUALITY, passed=False, found=f"not checked: {why}")


def _only(gallery: Gallery, paths: set[Path]) -> Gallery:
    kept = [row for row, clip in enumerate(gallery.clips) if clip.path in paths]
    return Gallery([gallery.clips[row] for row in kept], [gallery.embeddings[row] for row in kept])


def _differences(
    ours: tuple[Encoder, Gallery], theirs: tuple[Encoder, Gallery], queries: Sequence[Query]
) -> dict[str, Estimate]:
    identities = [query.identity for query in queries]
    new, old = (judge(encoder, gallery, queries) for encoder, gallery in (ours, theirs))
    return {
        name: estimate(identities, new[name].average_precision - old[name].average_precision)
        for name in SLICES
    }


def optimised(index: Index, generation: Generation) -> Gate:
    """Ask Qdrant whether it has anything left to do."""
    items, moments = index.health(generation), index.health(generation.moments)
    found = (
        f"{items.status}; {items.points} points, {items.indexed} vectors in an index; of moments "
        f"{moments.status}; {moments.points} points, {moments.indexed} vectors"
    )
    return Gate(GateName.OPTIMISED, items.optimised and moments.optimised, found)


def services(urls: Sequence[str], version: str, access: Access = ANYBODY) -> Gate:
    """Ask each query service whether it has loaded the version: every address of every URL."""
    asked = [each for url in urls for each in _replicas(url)]
    lacking = [
        f"{url} ({address})"
        for url, address in asked
        if not _is_ready(url, version, address, access)
    ]
    found = f"{len(asked) - len(lacking)} of {len(asked)} have loaded it"
    return Gate(GateName.SERVICES, not lacking, ", not ".join([found, *lacking]))


def _replicas(url: str) -> list[tuple[str, str]]:
    """Return the addresses of a URL with it; one that has none is not ready."""
    try:
        return [(url, address) for address in replicas(url)]
    except Unavailable:
        return [(url, "")]


def _is_ready(url: str, version: str, address: str, access: Access) -> bool:
    try:
        return bool(address) and has_loaded(url, version, address, access)
    except Unavailable:
        return False
