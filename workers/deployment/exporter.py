"""The exporter: what belongs to the whole deployment, asked for at each scrape and told once.

    scrape ──> queue, index, store, registry, each asked in a thread of its own ──> what they say

What does not answer in time is down: its series are left out, because nobody knows them, and
``audiofuse_up`` tells. See deploy/metrics.md.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from enum import StrEnum
from functools import partial

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis import RedisError

from audiofuse.core.bundles.document import NOT_LIVE_YET, Phase, Rollout
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.errors import AudiofuseError, Reason, Unavailable
from audiofuse.core.evaluation.scorecards import MAP, SYSTEMS, compared, open_scorecards
from audiofuse.core.index.index import Generation, GenerationGone, open_index
from audiofuse.core.query import Filter
from audiofuse.core.settings import Settings
from audiofuse.core.storage.store import open_store
from audiofuse.workers.queue.broker import connect_redis, open_lanes
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.repair.brake import Brake
from audiofuse.workers.repair.findings import LastRun
from audiofuse.workers.telemetry.metrics import REGISTRIES, Process

log = logging.getLogger(__name__)

TIMEOUT_S = 4.0  # Prometheus gives a scrape 10 s
WORDLESS = Filter(has_text=False)
NO_KEY = ".audiofuse"  # an object that is asked for to see whether the store answers
GAUGES: Mapping[str, tuple[str, Sequence[str]]] = {
    "up": ("Whether a part answers.", ["part"]),
    "backlog_messages": ("Messages in the queue.", ["lane", "state"]),
    "backlog_oldest_seconds": ("Age of the oldest of them.", ["lane"]),
    "broken_messages": ("Messages that were set aside because they are none of ours.", []),
    "broker_memory_used_bytes": ("What the broker holds in its memory.", []),
    "broker_memory_limit_bytes": ("What it may hold; none if it has no limit.", []),
    "dead_letters": ("Dead letters that stand.", ["reason"]),
    "reconcile_items": ("What the last comparison found.", ["finding"]),
    "reconcile_differing_runs": ("Comparisons in a row that found differences.", []),
    "reconcile_timestamp_seconds": ("When the last comparison ended.", []),
    "reconcile_duration_seconds": ("How long the last comparison took.", []),
    "removals_held_back": ("Points without objects that were too many to be removed.", []),
    "items": ("Points of an encoder version.", ["version", "role"]),
    "items_without_text": ("Points without any metadata.", ["version", "role"]),
    "coverage_ratio": ("Points over those of the version that has most.", ["version", "role"]),
    "index_optimised": ("Whether Qdrant has nothing left to do.", ["version", "role"]),
    "index_indexed_vectors": ("Vectors that are in an index.", ["version", "role"]),
    "bucket_items": ("Items of the live version, by bucket.", ["bucket"]),
    "version_info": ("Versions that items are written to.", ["version", "role"]),
    "rollout_phase": ("The phase of the rollout.", ["phase"]),
    "rollout_step_timestamp_seconds": ("When the last step was taken.", []),
    "quality_ratio": (
        "mAP@10 by the newest scores that compare.",
        ["version", "role", "system", "bound"],
    ),
}

Values = Iterable[tuple[Sequence[str], float]]


class Part(StrEnum):
    """What is asked."""

    QUEUE = "queue"
    INDEX = "index"
    STORE = "store"
    REGISTRY = "registry"


class Role(StrEnum):
    """What an encoder version is to the deployment."""

    LIVE = "live"
    CANDIDATE = "candidate"
    PREVIOUS = "previous"


def _gauge(name: str, values: Values = ()) -> GaugeMetricFamily:
    tells, labels = GAUGES[name]
    family = GaugeMetricFamily(f"audiofuse_{name}", tells, labels=labels)
    for labelled, value in values:
        family.add_metric(labelled, value)
    return family


class Deployment:
    """What the parts of a deployment say about it."""

    def __init__(self, settings: Settings) -> None:
        """Ask the parts that the settings name; nothing is asked yet."""
        self._redis = connect_redis(settings)
        self._lanes = open_lanes(settings)
        self._index = open_index(settings)
        self._store = open_store(settings)
        self._registry = open_registry(settings)
        self._scorecards = open_scorecards(settings)
        self._letters = DeadLetters(self._redis, settings.index_name)
        self._last_run = LastRun(self._redis, settings.index_name)
        self._brake = Brake(self._redis, settings.index_name)
        self._rollout: Rollout | None = None  # as it was seen last

    def queue(self) -> Iterator[Metric]:
        """Tell what waits, what was rejected, and what was found when all was compared."""
        lanes = self._lanes.backlogs()
        ready = [([lane, "ready"], each.ready) for lane, each in lanes.items()]
        held = [([lane, "unacknowledged"], each.unacknowledged) for lane, each in lanes.items()]
        yield _gauge("backlog_messages", ready + held)
        oldest = [([lane], each.oldest_s) for lane, each in lanes.items()]
        yield _gauge("backlog_oldest_seconds", oldest)
        yield _gauge("broken_messages", [([], self._lanes.broken())])
        memory = self._redis.info("memory")
        yield _gauge("broker_memory_used_bytes", [([], memory["used_memory"])])
        limit = memory["maxmemory"]  # 0: none
        yield _gauge("broker_memory_limit_bytes", [([], limit)] if limit else [])
        standing = self._letters.reasons()
        yield _gauge("dead_letters", [([reason], standing.get(reason, 0)) for reason in Reason])
        removals = self._brake.held()
        yield _gauge("removals_held_back", [([], removals.lost if removals else 0)])
        if run := self._last_run.read():
            yield _gauge("reconcile_items", [([name], n) for name, n in run.found.items()])
            yield _gauge("reconcile_differing_runs", [([], run.in_a_row)])
            yield _gauge("reconcile_timestamp_seconds", [([], run.at)])
            yield _gauge("reconcile_duration_seconds", [([], run.seconds)])

    def index(self) -> Iterator[Metric]:
        """Tell how the generations stand: the one that the alias names, and the rollout's other."""
        points, wordless, health = {}, {}, {}
        for labels, generation in self._generations():
            with suppress(GenerationGone):  # it is not made yet, or was dropped just now
                health[labels] = self._index.health(generation)
                wordless[labels] = self._index.count(generation, WORDLESS)
                points[labels] = self._index.count(generation)
        yield _gauge("items", points.items())
        yield _gauge("items_without_text", wordless.items())
        if most := max(points.values(), default=0):
            yield _gauge("coverage_ratio", [(labels, n / most) for labels, n in points.items()])
        yield _gauge("bucket_items", self._by_bucket())
        optimised = [(labels, each.optimised) for labels, each in health.items()]
        yield _gauge("index_optimised", optimised)
        indexed = [(labels, each.indexed) for labels, each in health.items()]
        yield _gauge("index_indexed_vectors", indexed)

    def _by_bucket(self) -> Iterator[tuple[list[str], int]]:
        """Count what queries meet of each bucket; of those that the settings name, so of a few."""
        live = self._index.live()
        if live is None:
            return
        for part in self._store.parts():
            bucket, _ = self._store.place(part)
            with suppress(GenerationGone):
                yield [bucket], self._index.count(live, self._store.where(part))

    def _generations(self) -> Iterator[tuple[tuple[str, Role], Generation]]:
        """Yield the generation that queries meet, whatever the document says, and the other."""
        live = self._index.live()
        if live:
            yield (live.version, Role.LIVE), live
        for version, role in _roles(self._rollout).items() if self._rollout else ():
            generation = self._index.generation(version)
            if generation != live:
                yield (version, role), generation

    def store(self) -> Iterator[Metric]:
        """Look whether every bucket answers; ``Unavailable`` names those that do not."""
        away = []
        for part in self._store.parts():
            try:
                self._store.head(part + NO_KEY)
            except Unavailable as error:
                away.append(f"{part}: {error}" if part else str(error))
        if away:
            raise Unavailable("; ".join(away))
        yield from ()

    def registry(self) -> Iterator[Metric]:
        """Tell the rollout's state."""
        rollout, _ = self._registry.rollout()
        self._rollout = rollout
        now = rollout.phase if rollout else Phase.NONE
        yield _gauge("rollout_phase", [([phase], phase is now) for phase in Phase])
        if rollout:
            yield _gauge("version_info", [(each, 1) for each in _roles(rollout).items()])
            yield _gauge("quality_ratio", self._quality(rollout))
            if rollout.history:
                yield _gauge("rollout_step_timestamp_seconds", [([], rollout.history[-1].at)])

    def _quality(self, rollout: Rollout) -> Values:
        """Yield mAP@10 of the rollout's versions by questions that all of them were asked."""
        roles = _roles(rollout)
        scores = compared(self._scorecards.of(version) for version in roles)
        for version, score in scores.items():
            for system in SYSTEMS:
                if figure := score.figures.get(system, {}).get(MAP):
                    for bound, value in figure:
                        yield (version, roles[version], system, bound), value


def _roles(rollout: Rollout) -> dict[str, Role]:
    """Return what each version is, by the document."""
    other = Role.CANDIDATE if rollout.phase in NOT_LIVE_YET else Role.PREVIOUS
    return dict.fromkeys(rollout.versions, other) | {rollout.live: Role.LIVE}


class Asker:
    """Asks one part, in a thread of its own, so that one that hangs holds up no other."""

    def __init__(self, part: Part, ask: Callable[[], Iterable[Metric]]) -> None:
        """``ask`` the part."""
        self.part = part
        self._ask = ask
        self._lock = threading.Lock()
        self._answer: Future[list[Metric]] | None = None
        self._was_up = True

    def begin(self) -> "Future[list[Metric]]":
        """Ask, unless the question before is still open."""
        with self._lock:
            if self._answer is None or self._answer.done():
                self._answer = Future()
                target = partial(self._run, self._answer)
                threading.Thread(target=target, name=self.part, daemon=True).start()
            return self._answer

    def _run(self, answer: "Future[list[Metric]]") -> None:
        try:
            answer.set_result(list(self._ask()))
        except Exception as error:  # noqa: BLE001 - it is told, and logged, where it is waited for
            answer.set_exception(error)

    def end(self, answer: "Future[list[Metric]]", patience_s: float) -> list[Metric] | None:
        """Return what the part said; ``None`` if it did not in time, or could not."""
        try:
            metrics = answer.result(patience_s)
        except (AudiofuseError, RedisError, TimeoutError) as error:
            self._changed(up=False, why=str(error) or f"no answer in {TIMEOUT_S:.0f} s")
            return None
        except Exception:
            log.exception("%s cannot be asked", self.part)
            return None
        self._changed(up=True)
        return metrics

    def _changed(self, *, up: bool, why: str = "") -> None:
        """Log it once, not at each scrape."""
        if up and not self._was_up:
            log.info("%s answers again", self.part)
        if not up and self._was_up:
            log.warning("%s is away: %s", self.part, why)
        self._was_up = up


class Exporter(Collector):
    """Collects what the parts say."""

    def __init__(
        self, ask: Mapping[Part, Callable[[], Iterable[Metric]]], timeout_s: float = TIMEOUT_S
    ) -> None:
        """``ask`` each part at each scrape, and wait ``timeout_s`` for all together."""
        self._askers = [Asker(part, question) for part, question in ask.items()]
        self._timeout_s = timeout_s

    def describe(self) -> Iterable[Metric]:
        """Tell the names, without asking anybody."""
        return map(_gauge, GAUGES)

    def collect(self) -> Iterable[Metric]:
        """Ask everybody."""
        deadline = time.monotonic() + self._timeout_s
        begun = [(asker, asker.begin()) for asker in self._askers]
        up = []
        for asker, answer in begun:
            found = asker.end(answer, max(0.0, deadline - time.monotonic()))
            up.append(([asker.part], found is not None))
            yield from found or ()
        yield _gauge("up", up)


def tell_of(settings: Settings) -> None:
    """Have this process tell what belongs to the whole deployment."""
    deployment = Deployment(settings)
    exporter = Exporter({part: getattr(deployment, part) for part in Part})
    REGISTRIES[Process.EXPORTER].register(exporter)
