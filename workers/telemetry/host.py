"""One metrics address for all processes of a worker's host.

Each child tells what it counts over a Unix socket, in Prometheus's text format. At each scrape the
host asks all, and joins what has one name and labels: counters and histograms are added up, of
gauges that is told which says most (``SUMS``, ``LEAST``, otherwise the greatest). What a child
counted that has ended stays in the sums: else they would fall, which Prometheus takes for a restart
of all.
"""

import io
import logging
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_fd_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from audiofuse.core.threads import vital_thread

log = logging.getLogger(__name__)

UNIX = "unix:"
ASK_S = 2.0  # for a child's answer; raised, one that stands still delays the scrape longer
ADDED_UP = {"counter", "histogram", "summary"}  # types
SUMS = {
    "audiofuse_in_hand_messages",
    "audiofuse_outage",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
}
LEAST = {"audiofuse_heartbeat_timestamp_seconds"}

Series = tuple[str, str, tuple[tuple[str, str], ...]]  # a family, a sample's name, its labels
Values = dict[Series, float]


def tell_host(path: Path, registry: CollectorRegistry) -> None:
    """Tell what is in ``registry`` to whoever connects to a socket at ``path``, from a thread."""
    path.unlink(missing_ok=True)  # of a process before
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    listening.listen()

    def run() -> None:
        while True:
            asker, _ = listening.accept()
            with asker, suppress(OSError):  # the scrape was given up
                asker.settimeout(ASK_S)
                asker.sendall(generate_latest(registry))

    vital_thread("metrics", run)


class HostMetrics(Collector):
    """Joins what the processes of a host tell."""

    def __init__(self, sockets: Callable[[], Mapping[str, Path]]) -> None:
        """Ask the ``sockets`` of the processes that run now, by a name that none had before."""
        self._sockets = sockets
        self._lock = threading.Lock()
        self._families: dict[str, Metric] = {}  # that any process has told of
        self._counted: dict[str, Values] = {}  # by each process, when it last told
        self._ended: Values = defaultdict(float)  # by those that are no more

    def collect(self) -> Iterator[Metric]:
        """Yield all families, joined."""
        with self._lock:
            joined = self._join(self._sockets())
        for family in list(self._families.values()):
            metric = Metric(family.name, family.documentation, family.type)
            metric.samples = [
                Sample(name, dict(labels), value)
                for (of, name, labels), value in joined.items()
                if of == family.name
            ]
            yield metric

    def _join(self, running: Mapping[str, Path]) -> Values:
        """Ask the processes that run; return the value of each series."""
        for name in self._counted.keys() - running.keys():
            for series, value in self._counted.pop(name).items():
                self._ended[series] += value
        joined: Values = {}
        for name, path in running.items():
            counted: Values = {}
            for family in _ask(name, path):
                self._families.setdefault(family.name, family)
                for sample in family.samples:
                    series = family.name, sample.name, tuple(sorted(sample.labels.items()))
                    if family.type in ADDED_UP:
                        counted[series] = sample.value
                    else:
                        joined[series] = _gauge(family.name, joined.get(series), sample.value)
            if counted or name not in self._counted:
                self._counted[name] = counted
        for counts in (self._ended, *self._counted.values()):
            for series, value in counts.items():
                joined[series] = joined.get(series, 0.0) + value
        return joined


def _gauge(name: str, others: float | None, value: float) -> float:
    """Return what a gauge of several processes tells, ``others`` being that of those before."""
    if others is None:
        return value
    if name in SUMS:
        return others + value
    if name in LEAST and others and value:  # the device has none, which is 0
        return min(others, value)
    return max(others, value)


def _ask(name: str, path: Path) -> Iterable[Metric]:
    """Return what a process tells; nothing, and a line in the log, if it does not answer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(ASK_S)
            asking.connect(str(path))
            text = b"".join(iter(lambda: asking.recv(65536), b"")).decode()
    except OSError as error:
        log.warning("%s tells no metrics: %s", name, error)
        return []
    return list(text_fd_to_metric_families(io.StringIO(text)))
