"""The steps of a rollout, as an operator takes them.

    collection ──> document, if it is still the one looked at ──> alias ──> document: the same?
                       └──> every worker and query service follows it ──> the next step

The document decides (``core/bundles/document.py``), and the alias follows it. So an operator's
process that dies between the two is finished by the next command, and of two that race the document
knows the winner. The same command again finishes its own step, too. No document names a collection
that is not made, because whatever changes in the bucket is written to each that it names. The
checkpoint of a backfill is the index itself: whoever resumes compares again.
"""

import getpass
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiofuse.core.bundles.document import Phase, Rollout
from audiofuse.core.bundles.registry import Registry, open_registry
from audiofuse.core.errors import AudiofuseError, ConfigurationError, ObjectChanged, Unavailable
from audiofuse.core.index.index import Generation, GenerationGone, Index, open_index
from audiofuse.core.moments.windows import grid_in_force
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import open_store
from audiofuse.workers.queue.broker import connect_redis
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.queue.followers import Followers
from audiofuse.workers.repair.agreement import Agreement, rejected_alone
from audiofuse.workers.repair.backfill import build
from audiofuse.workers.repair.feed import LaneFeed
from audiofuse.workers.rollout.following import wait_until_followed
from audiofuse.workers.telemetry.names import Lane

if TYPE_CHECKING:
    from audiofuse.core.encoder.encoder import Encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """The document as it was looked at, and its tag; what is written next builds on just that."""

    rollout: Rollout
    tag: str | None


class Rollouts:
    """Writes the document and makes alias and collections follow it."""

    def __init__(self, registry: Registry, index: Index) -> None:
        """Keep the document in ``registry``; alias and collections are those of ``index``."""
        self._registry = registry
        self._index = index

    def look(self) -> Seen:
        """Return the document, once the alias follows it; without one, what the alias says.

        Raises ``ConfigurationError`` if nothing is live yet.
        """
        self._settle()
        rollout, tag = self._registry.rollout()
        if rollout is None:
            live = self._index.live()
            if live is None:
                raise ConfigurationError("nothing is live yet: a worker begins with its encoder")
            rollout = Rollout(live=live.version)
        return Seen(rollout, tag)

    def take(self, seen: Seen, step: Rollout) -> Seen:
        """Write the step that follows what was seen, and have the alias follow.

        Raises ``AudiofuseError`` if somebody else took a step meanwhile; then nothing is done. It
        also does if the step is taken and the alias cannot follow now.
        """
        try:
            self._registry.write(step, seen.tag)
        except ObjectChanged as error:
            raise AudiofuseError(
                "somebody else took a step meanwhile, nothing is done: see audiofuse rollout status"
            ) from error
        try:
            return self.look()
        except Unavailable as error:
            raise AudiofuseError(
                f"the step is taken, but what is live does not follow yet: {error}; once that is "
                "mended any command finishes it: audiofuse rollout status"
            ) from error

    def _settle(self) -> None:
        """Let the alias name what the document says, until that did not change on the way."""
        rollout, tag = self._registry.rollout()
        while rollout:
            live = self._index.generation(rollout.live)
            try:
                if self._index.live() != live:
                    self._index.promote(live)
            except GenerationGone as error:
                log.warning("the alias cannot follow: %s", error)
            before, (rollout, tag) = tag, self._registry.rollout()
            if tag == before:
                return

    def dropped(self) -> list[Generation]:
        """Return the generations of dropped versions that are still there."""
        rollout, _ = self._registry.rollout()
        if rollout is None or not rollout.dropped:
            return []
        return [each for each in self._index.generations() if each.version in rollout.dropped]


class Operator:
    """Takes steps as one person, on one machine."""

    def __init__(self, settings: Settings) -> None:
        """Look at the rollout and finish what was killed; every step builds on that."""
        self.settings = settings
        self.registry = open_registry(settings)
        self.index = open_index(settings)
        self._rollouts = Rollouts(self.registry, self.index)
        self._followers = Followers(connect_redis(settings), settings.index_name)
        self._seen = self._rollouts.look()
        self._by = _user()
        self._clean()

    @property
    def rollout(self) -> Rollout:
        """The rollout as it was when it was looked at, or as the last step made it."""
        return self._seen.rollout

    def start(self, version: str, load: "Callable[[], Encoder]") -> None:
        """Open a rollout of a version; it is loaded if it may be started."""
        step = self.rollout.start(version, self._by)
        for each in (step.live, version):
            if not self.registry.has(each):
                raise ConfigurationError(
                    f"{each} is not published in {self.registry.place}: audiofuse-train publish"
                )
        self._create(version, load())
        self._take(step)

    def finishes(self, step: str) -> bool:
        """Finish the last step, if it was ``step``: its command was killed, or is given again."""
        last = self.rollout.history[-1].what if self.rollout.history else ""
        if not f"{last} ".startswith(f"{step} "):
            return False
        self.wait_for_followers()
        self._clean()
        return True

    def resume(self, load: "Callable[[], Encoder]") -> None:
        """Go on with what was started, whatever of its collection is lacking."""
        rollout = self.rollout
        is_building = rollout.phase not in {Phase.NONE, Phase.PAUSED}
        step = rollout if is_building else rollout.resume(self._by)
        self._create(step.other, load())
        if not is_building:
            self._take(step)

    def _create(self, version: str, encoder: "Encoder") -> None:
        grid = grid_in_force(self.settings, encoder.config.grid)
        self.index.create(version, encoder, grid)

    def build(self, show: Callable[[int, int], None]) -> bool:
        """Fill the other version until it has everything; false if somebody stopped that.

        ``show`` is told its points and those of the live one.
        """
        self.wait_for_followers()  # from here on every change goes to both
        version = self.rollout.other

        def is_wanted() -> bool:
            rollout = self._rollouts.look().rollout
            if version not in rollout.versions or rollout.phase is Phase.PAUSED:
                return False
            show(self.points(version), self.points(rollout.live))
            return True

        return build(self.agreement(version), LaneFeed(self.settings, Lane.BACKFILL), is_wanted)

    def pause(self) -> None:
        """Stop building."""
        self._take(self.rollout.pause(self._by))

    def may_promote(self) -> None:
        """Raise ``ConfigurationError`` if there is nothing to promote."""
        self.rollout.promote(self._by)

    def promote(self, forced: tuple[str, ...]) -> None:
        """Make the other version live, though ``forced`` gates were not passed."""
        self._switch(self.rollout.promote(self._by, forced))

    def rollback(self) -> None:
        """Make the version live again that was so before."""
        self._switch(self.rollout.rollback(self._by))

    def _switch(self, step: Rollout) -> None:
        """Exchange the live version; whatever would refuse that is found before it is decided."""
        known = self.index.generations()
        if self.index.generation(step.live) not in known:
            raise ConfigurationError(f"{step.live} has no collection: it cannot be searched")
        before = self.index.generation(self.rollout.live)
        if before in known:
            self.index.promote(before)  # it is so already: this shows that aliases may be changed
        self._take(step)
        self.wait_for_followers()

    def wait_for_followers(self) -> None:
        """Return once every worker and query service follows the document that was seen."""
        wait_until_followed(self._followers, self._seen.tag)

    def abort(self) -> None:
        """Drop the version that is built."""
        self._close(self.rollout.abort(self._by))

    def drop(self) -> None:
        """Drop the version that was live before."""
        self._close(self.rollout.drop(self._by))

    def _close(self, step: Rollout) -> None:
        """End the rollout, and delete the dropped version once nobody writes to it."""
        self._take(step)
        self.wait_for_followers()
        self._clean()

    def _clean(self) -> None:
        """Delete what was dropped, if nobody can be writing to it: whoever was killed did not."""
        for generation in self._rollouts.dropped():
            if self._followers.behind(self._seen.tag):
                return
            agreement, rollout = self.agreement(generation.version), self.rollout
            letters = rejected_alone(agreement, generation.version, rollout.live, rollout.started)
            agreement.letters.clear([each.key for each in letters])
            self.index.drop(generation)

    def agreement(self, version: str) -> Agreement:
        """Return how the bucket and the generation of a version agree."""
        store = open_store(self.settings)
        letters = DeadLetters(connect_redis(self.settings), self.settings.index_name)
        return Agreement(store, self.index, self.index.generation(version), letters)

    def points(self, version: str) -> int:
        """Return how many points a version has; none before its collection is made."""
        try:
            return self.index.count(self.index.generation(version))
        except GenerationGone:
            return 0

    def _take(self, step: Rollout) -> None:
        self._seen = self._rollouts.take(self._seen, step)


def _user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers that have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
