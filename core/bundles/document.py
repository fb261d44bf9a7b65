"""A rollout: which encoder version is live, which one is built beside it, and how far that is.

                    resume ──> building <── start
                                  │  ^
                           pause  v  │ resume
                                paused
                                  │ promote              abort: the candidate is dropped
    building, paused, rolled_back ┴──────────> promoted ── drop: the old one is dropped ──> none
                       ^───────────────────────── rollback

One document in the registry says so (``registry.py``), and everything follows it: the alias, the
workers, which write every item into each of its ``versions``, and the query services, which load
them. A step is written on the condition that the document is still the one looked at.
"""

import time
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from audiofuse.core.errors import ConfigurationError

POLL_S = 1.0  # seconds between two looks of a worker or query service at the document
# Seconds for which a worker may act on what it read. Lower: a registry that answers slowly stops
# indexing sooner. Higher: an operator waits longer for a worker that cannot read the document.
LEASE_S = 10.0
STEPS_KEPT = 50


class Phase(StrEnum):
    """How far a rollout is."""

    NONE = "none"  # no rollout is open
    BUILDING = "building"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


NOT_LIVE_YET = (Phase.BUILDING, Phase.PAUSED, Phase.ROLLED_BACK)


class Step(BaseModel):
    """What was done, by whom (``user@host``), and at which Unix time."""

    model_config = ConfigDict(frozen=True)
    what: str
    by: str
    at: float


class Override(BaseModel):
    """A gate that did not pass and was forced, by whom and at which Unix time."""

    model_config = ConfigDict(frozen=True)
    gate: str
    by: str
    at: float


class Rollout(BaseModel):
    """The document. Each step returns the next one, or raises ``ConfigurationError``.

    ``live`` is what the alias should name; ``other`` is the version that is built, or the one to
    roll back to, "" if no rollout is open. Collections of ``dropped`` versions are gone for good:
    their names are never used again. ``overrides`` are those of this rollout.
    """

    model_config = ConfigDict(frozen=True)
    live: str
    other: str = ""
    phase: Phase = Phase.NONE
    started: float = 0.0
    dropped: tuple[str, ...] = ()
    overrides: tuple[Override, ...] = ()
    history: tuple[Step, ...] = ()

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions that every item must be in, the live one first."""
        return (self.live, self.other) if self.other else (self.live,)

    @property
    def _candidate(self) -> str:
        """The newer version of an open rollout."""
        return self.live if self.phase is Phase.PROMOTED else self.other

    def start(self, version: str, by: str) -> Self:
        """Open a rollout of ``version``."""
        if version == self.live:
            raise ConfigurationError(f"{version} is live already")
        if self.other:
            how = "rollback or drop" if self.phase is Phase.PROMOTED else "resume, promote or abort"
            raise ConfigurationError(
                f"a rollout is open, {self._candidate} is {self.phase}: {how} comes first"
            )
        if version in self.dropped:
            raise ConfigurationError(
                f"{version} was dropped, and a collection's name is never used again: "
                "publish the bundle under another name (audiofuse-train publish --name)"
            )
        return self._step(
            f"start {version}", by,
            other=version, phase=Phase.BUILDING, started=time.time(), overrides=(),
        )  # fmt: skip

    def pause(self, by: str) -> Self:
        """Stop building; what changes in the bucket is still written to both versions."""
        self._require("pause", Phase.BUILDING)
        return self._step("pause", by, phase=Phase.PAUSED)

    def resume(self, by: str) -> Self:
        """Go on with building."""
        self._require("resume", Phase.PAUSED)
        return self._step("resume", by, phase=Phase.BUILDING)

    def promote(self, by: str, forced: tuple[str, ...] = ()) -> Self:
        """Make the other version live; ``forced`` are the gates that did not pass."""
        self._require("promote", *NOT_LIVE_YET)
        at = time.time()
        overrides = tuple(Override(gate=gate, by=by, at=at) for gate in forced)
        what = f"promote {self.other}" + "".join(f", {gate} forced" for gate in forced)
        return self._swap(what, by, Phase.PROMOTED, overrides=self.overrides + overrides)

    def rollback(self, by: str) -> Self:
        """Make the version live again that was so before."""
        self._require("rollback", Phase.PROMOTED)
        return self._swap(f"rollback to {self.other}", by, Phase.ROLLED_BACK)

    def abort(self, by: str) -> Self:
        """Close the rollout and drop the version that is built."""
        self._require("abort", *NOT_LIVE_YET)
        return self._close("abort", by)

    def drop(self, by: str) -> Self:
        """Close the rollout and drop the version that was live before."""
        self._require("drop", Phase.PROMOTED)
        return self._close("drop", by)

    def _require(self, what: str, *phases: Phase) -> None:
        if self.phase in phases:
            return
        state = f"{self._candidate} is {self.phase}" if self.other else "no rollout is open"
        raise ConfigurationError(f"nothing to {what}: {state}")

    def _swap(self, what: str, by: str, phase: Phase, **changes: Any) -> Self:
        return self._step(what, by, live=self.other, other=self.live, phase=phase, **changes)

    def _close(self, what: str, by: str) -> Self:
        return self._step(
            f"{what} {self.other}", by,
            other="", phase=Phase.NONE, dropped=(*self.dropped, self.other),
        )  # fmt: skip

    def _step(self, what: str, by: str, **changes: Any) -> Self:
        step = Step(what=what, by=by, at=time.time())
        history = (*self.history, step)[-STEPS_KEPT:]
        return self.model_copy(update={**changes, "history": history})
