"""The metrics of a host's processes, told as one."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from audiofuse.workers.telemetry.host import HostMetrics, tell_host

HEARTBEAT = "audiofuse_heartbeat_timestamp_seconds"


class Told:
    """A process's registry, and where it tells of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.registry = CollectorRegistry()
        self.syncs = Counter("syncs", "Syncs.", ["lane"], registry=self.registry)
        self.waited = Histogram("waited", "Seconds.", buckets=(1, 2), registry=self.registry)
        self.in_hand = Gauge("audiofuse_in_hand_messages", "Now.", registry=self.registry)
        self.heartbeat = Gauge(HEARTBEAT, "Then.", registry=self.registry)
        self.limit = Gauge("limit", "The same for all.", registry=self.registry)
        tell_host(path, self.registry)


class World:
    """Two processes, and what their host tells."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running = {name: Told(root / name) for name in ("one", "two")}
        self.host = CollectorRegistry()
        self.host.register(HostMetrics(lambda: {k: v.path for k, v in self.running.items()}))

    def lines(self) -> set[str]:
        """Return the series with their values."""
        return {line for line in generate_latest(self.host).decode().splitlines() if line[0] != "#"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return two processes that have counted something."""
    made = World(tmp_path)
    for number, told in enumerate(made.running.values(), 1):
        told.syncs.labels("live").inc(number)
        told.waited.observe(number)
        told.in_hand.set(number)
        told.limit.set(7)
    made.running["one"].heartbeat.set(100)
    made.running["two"].heartbeat.set(50)
    return made


def test_what_is_counted_is_added_up(world: World) -> None:
    """Counters, histograms and what is in hand are sums; of heartbeats the oldest tells."""
    assert world.lines() >= {
        'syncs_total{lane="live"} 3.0',
        'waited_bucket{le="1.0"} 1.0',
        'waited_bucket{le="+Inf"} 2.0',
        "waited_sum 3.0",
        "audiofuse_in_hand_messages 3.0",
        f"{HEARTBEAT} 50.0",
        "limit 7.0",
    }


def test_what_an_ended_process_counted_stays(world: World) -> None:
    """Its next one begins with zero, and the sum goes on from where it was."""
    world.lines()
    world.running.pop("one")
    world.running["one, again"] = Told(world.root / "again")
    assert 'syncs_total{lane="live"} 3.0' in world.lines()
    world.running["one, again"].syncs.labels("live").inc()
    assert world.lines() >= {'syncs_total{lane="live"} 4.0', "audiofuse_in_hand_messages 2.0"}


def test_a_process_that_does_not_answer_leaves_out_its_state_only(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What it had counted is still in the sums, and the log names it."""
    world.lines()
    world.running["one"].path.unlink()
    assert world.lines() >= {'syncs_total{lane="live"} 3.0', "audiofuse_in_hand_messages 2.0"}
    assert "one tells no metrics" in caplog.text
