"""The metrics that each process exposes; deploy/metrics.md says what every one means.

Every process has a registry of its own, so that none exposes zeros about another's work. All series
whose labels are known beforehand exist from the start: a rate needs a first zero.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import version as installed_version
from itertools import product
from pathlib import Path
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from redis import RedisError

from audiofuse.core.errors import ConfigurationError, ObjectChanged, Reason, Rejected, Unavailable
from audiofuse.core.memory import memory_limit, memory_used
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.workers.telemetry.host import UNIX, HostMetrics, tell_host
from audiofuse.workers.telemetry.names import Flaw, Lane, Source

log = logging.getLogger(__name__)


class Process(StrEnum):
    """The kinds of processes."""

    WORKER = "worker"
    INTAKE = "intake"
    SEARCH = "search"
    INDEX = "index"
    RECONCILE = "reconcile"
    EXPORTER = "exporter"


class Stage(StrEnum):
    """A part of an item's way."""

    LOOK = "look"
    FETCH = "fetch"
    DECODE = "decode"
    ENCODE = "encode"
    FUSE = "fuse"
    GET = "get"
    UPSERT = "upsert"
    REMOVE = "remove"


class Failure(StrEnum):
    """What an error says about whose fault it is; see ``core/errors.py``."""

    REJECTED = "rejected"
    UNAVAILABLE = "unavailable"
    CHANGED = "changed"
    BUG = "bug"

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Classify an error."""
        match error:
            case Rejected():
                return cls.REJECTED
            case Unavailable() | RedisError():
                return cls.UNAVAILABLE
            case ObjectChanged():
                return cls.CHANGED
        return cls.BUG


class Split(StrEnum):
    """Why a batch was halved."""

    OUT_OF_MEMORY = "out_of_memory"
    ERROR = "error"


SYNC_OUTCOMES = (
    "created", "updated", "re-fused", "unchanged", "removed", "absent", "later",
    "rejected", "unavailable", "bug", "revoked",
)  # fmt: skip
EVENT_OUTCOMES = ("handed_over", "ignored", *Flaw)
HANDED_OVER, IGNORED = EVENT_OUTCOMES[:2]
FRESH_S = (0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120, 300, 900, 3600, 6 * 3600, 24 * 3600)
STAGE_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TENTHS = tuple(number / 10 for number in range(1, 11))
WASTE = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1)
POWERS_OF_TWO = (1, 2, 4, 8, 16, 32, 64, 128)

REGISTRIES = {process: CollectorRegistry() for process in Process}

Metric = TypeVar("Metric", Counter, Gauge)


def _known(metric: Counter | Gauge | Histogram, labels: dict[str, Iterable[str]]) -> None:
    """Make the series whose labels are known."""
    for values in product(*labels.values()) if labels else ():
        metric.labels(*values)


def _plain(
    kind: type[Metric], owner: Process, name: str, documentation: str, **labels: Iterable[str]
) -> Metric:
    metric = kind(f"audiofuse_{name}", documentation, list(labels), registry=REGISTRIES[owner])
    _known(metric, labels)
    return metric


def _histogram(
    owner: Process,
    name: str,
    documentation: str,
    buckets: tuple[float, ...],
    **labels: Iterable[str],
) -> Histogram:
    metric = Histogram(
        f"audiofuse_{name}",
        documentation,
        list(labels),
        registry=REGISTRIES[owner],
        buckets=buckets,
    )
    _known(metric, labels)
    return metric


BUILD_INFO = {
    process: _plain(Gauge, process, "build_info", "The version that runs.", version=(), process=())
    for process in Process
}


def _disk() -> tuple[int, int]:
    """Return what is free and what there is, in bytes, where this process keeps what is passing."""
    usage = shutil.disk_usage(tempfile.gettempdir())
    return usage.free, usage.total


RESOURCES: dict[str, tuple[str, Callable[[], float]]] = {
    "disk_free_bytes": ("Free where temporary files are.", lambda: _disk()[0]),
    "disk_size_bytes": ("All there is where temporary files are.", lambda: _disk()[1]),
    "memory_used_bytes": ("What the process's control group needs.", memory_used),
    "memory_limit_bytes": ("What it may have.", memory_limit),
}
for _process in Process:
    for _name, (_tells, _figure) in RESOURCES.items():
        _plain(Gauge, _process, _name, _tells).set_function(_figure)

FRESHNESS = _histogram(
    Process.WORKER, "freshness_seconds",
    "From an item's last modification to when it can be found.", FRESH_S, lane=Lane,
)  # fmt: skip
CLOCK_SKEW = _plain(
    Counter, Process.WORKER, "clock_skew", "Items modified in the future by this clock."
)
SYNCS = _plain(
    Counter, Process.WORKER, "syncs", "Syncs of items, by what came of them.",
    lane=Lane, outcome=SYNC_OUTCOMES,
)  # fmt: skip
REDELIVERIES = _plain(
    Counter, Process.WORKER, "redeliveries", "Messages that were delivered again.", lane=Lane
)
IN_HAND = _plain(
    Gauge, Process.WORKER, "in_hand_messages", "Messages taken, not acknowledged.", lane=Lane
)
HEARTBEAT = _plain(
    Gauge, Process.WORKER, "heartbeat_timestamp_seconds",
    "When the thread that takes messages last went round.",
)  # fmt: skip
STAGE_DURATION = _histogram(
    Process.WORKER, "stage_duration_seconds", "How long a stage took.", STAGE_S, stage=Stage
)
_DURATIONS = {name: STAGE_DURATION.labels(name) for name in Stage}  # looked up once: it is hot
STAGE_ERRORS = _plain(
    Counter, Process.WORKER, "stage_errors", "How often a stage failed.",
    stage=Stage, error=Failure,
)  # fmt: skip
AUDIO = _plain(Counter, Process.WORKER, "audio_seconds", "Seconds of audio encoded, unpadded.")
MOMENTS = _plain(Counter, Process.WORKER, "moments", "Moments of recordings written.")
BATCH_FILL = _histogram(
    Process.WORKER, "batch_fill_ratio", "How full a batch of windows was.", TENTHS
)
BATCH_PADDING = _histogram(
    Process.WORKER, "batch_padding_ratio", "Which part of a batch's audio was padding.", WASTE
)
BATCH_CAPACITY = _plain(
    Gauge, Process.WORKER, "batch_capacity_seconds", "Seconds of audio that a batch may hold."
)
BATCH_SPLITS = _plain(
    Counter, Process.WORKER, "batch_splits", "Batches that failed and were halved.", cause=Split
)
DEVICE_BUSY = _plain(
    Counter, Process.WORKER, "device_busy_seconds", "Seconds in which the device had work."
)
DEVICE_MEMORY = _plain(
    Gauge, Process.WORKER, "device_memory_bytes", "Memory of the GPU.", memory=()
)
DEVICE_INFO = _plain(
    Gauge, Process.WORKER, "device_info", "Where and by what the encoder runs, what was asked for.",
    device=(), asked=(), runtime=(),
)  # fmt: skip
OUTAGE = _plain(
    Gauge,
    Process.WORKER,
    "outage",
    "More than 0 while object after object fails with the same error.",
)
REJECTIONS = _plain(Counter, Process.WORKER, "rejections", "Dead letters written.", reason=Reason)

EVENTS = _plain(
    Counter, Process.INTAKE, "events", "Events, by what became of them.", source=(), outcome=()
)
INTAKE_FAILURES = _plain(
    Counter, Process.INTAKE, "intake_failures", "How often intake had to pause.", source=()
)

QUERY_DURATION = _histogram(
    Process.SEARCH, "query_duration_seconds", "How long an answer took.", STAGE_S,
    route=(), status=(),
)  # fmt: skip
MEMBER_DURATION = _histogram(
    Process.SEARCH, "member_duration_seconds", "How long a member of a federation took.", STAGE_S,
    member=(), outcome=(),
)  # fmt: skip
QUERY_BATCH = _histogram(
    Process.SEARCH, "query_batch_size", "Queries that were read together.", POWERS_OF_TWO
)

RECONCILE_FAILURES = _plain(
    Counter, Process.RECONCILE, "reconcile_failures", "Comparisons that could not be made."
)


class LoadedEncoders(Collector):
    """The encoder versions that a process has loaded; ``versions`` is asked at each scrape."""

    versions: Callable[[], Iterable[str]] = staticmethod(tuple)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Describe the metric."""
        documentation = "Encoder versions that are loaded."
        yield GaugeMetricFamily("audiofuse_encoder_loaded", documentation, labels=["version"])

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Collect a sample for each version."""
        for family in self.describe():
            for version in self.versions():
                family.add_metric([version], 1)
            yield family


LOADED = {process: LoadedEncoders() for process in (Process.WORKER, Process.SEARCH)}
for _process, _collector in LOADED.items():
    REGISTRIES[_process].register(_collector)


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Measure a stage, and count its failure."""
    with timed(name):
        try:
            yield
        except Exception as error:
            failed(name, error)
            raise


@contextmanager
def timed(name: Stage) -> Iterator[None]:
    """Measure a stage."""
    started = time.perf_counter()
    try:
        yield
    finally:
        took(name, time.perf_counter() - started)


def took(name: Stage, seconds: float) -> None:
    """Observe how long a stage took."""
    _DURATIONS[name].observe(seconds)


def failed(name: Stage, error: BaseException) -> None:
    """Count the failure of a stage."""
    STAGE_ERRORS.labels(name, Failure.of(error)).inc()


def known_source(source: Source) -> None:
    """Begin to count the events of a source."""
    INTAKE_FAILURES.labels(source)
    for outcome in EVENT_OUTCOMES:
        EVENTS.labels(source, outcome)


def searchable(lane: Lane, age_s: float) -> None:
    """Observe how long after its modification an item became searchable."""
    if age_s < 0:
        CLOCK_SKEW.inc()
    FRESHNESS.labels(lane).observe(max(0.0, age_s))


def serve_metrics(settings: Settings, process: Process) -> str | None:
    """Serve the metrics of this process over HTTP, from a thread, if the settings say where.

    Returns the URL. Raises ``ConfigurationError`` if nothing can listen there.
    """
    if not settings.metrics_listen:
        return None
    registry, url = REGISTRIES[process], None
    if settings.metrics_listen.startswith(UNIX):
        tell_host(Path(settings.metrics_listen.removeprefix(UNIX)), registry)
    else:
        url = listen(settings, registry)
    ProcessCollector(registry=registry)
    BUILD_INFO[process].labels(installed_version("audiofuse"), process).set(1)
    return url


def serve_host(settings: Settings, sockets: Callable[[], Mapping[str, Path]]) -> None:
    """Serve, as one, what the processes of a host tell at ``sockets``; see ``HostMetrics``."""
    if settings.metrics_listen:
        registry = CollectorRegistry()
        registry.register(HostMetrics(sockets))
        listen(settings, registry)


def listen(settings: Settings, registry: Collector) -> str:
    """Serve metrics over HTTP where the settings say; return the URL."""
    host, _, port = settings.metrics_listen.rpartition(":")
    try:
        server, _ = start_http_server(int(port), host.strip("[]"), registry)
    except (OSError, ValueError) as error:
        where = f"{PREFIX}METRICS_LISTEN={settings.metrics_listen}"
        raise ConfigurationError(f"{where}: {error}") from error
    url = f"http://{host}:{server.server_port}/metrics"
    log.info("metrics are at %s", url)
    return url
