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

Labels = tuple[tuple[str, str], ...]
Values = dict[tuple[str, Labels], float]  # by a sample's name and labels


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
        self._last: dict[str, Values] = {}  # what each process had counted
        self._ended: Values = defaultdict(float)  # what was counted by those that are no more

    def collect(self) -> Iterator[Metric]:
        """Yield all families, joined."""
        running = self._sockets()
        for name in self._last.keys() - running.keys():
            for counter, value in self._last.pop(name).items():
                self._ended[counter] += value
        families: dict[str, Metric] = {}
        told: dict[str, dict[tuple[str, Labels], list[float]]] = defaultdict(dict)
        for name, path in running.items():
            counted: Values = {}
            for family in _ask(name, path):
                families.setdefault(family.name, family)
                for sample in family.samples:
                    key = sample.name, tuple(sorted(sample.labels.items()))
                    told[family.name].setdefault(key, []).append(sample.value)
                    if family.type in ADDED_UP:
                        counted[key] = sample.value
            self._last[name] = counted or self._last.get(name, {})
        for name, family in families.items():
            yield self._joined(family, told[name])

    def _joined(self, family: Metric, told: Mapping[tuple[str, Labels], list[float]]) -> Metric:
        joined = Metric(family.name, family.documentation, family.type)
        for (name, labels), values in told.items():
            if family.type in ADDED_UP:
                value = sum(values) + self._ended.get((name, labels), 0.0)
            elif family.name in SUMS:
                value = sum(values)
            elif family.name in LEAST:
                value = min(values)
            else:
                value = max(values)
            joined.samples.append(Sample(name, dict(labels), value))
        return joined


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
