"""Whole worker hosts on the device: messages from a folder and from SeaweedFS, one host and two."""

import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from towers import bundle, name_of
from worker import Sounds, expected, sounds
from worker_rig import POLL_S, Host, Rig, Shape

from audiofuse.core.settings import Settings
from audiofuse.workers.deployment.local import free_port
from audiofuse.workers.host.supervisor import processes_for
from audiofuse.workers.telemetry.names import Outcome

PATIENCE_S = 300.0  # for a host that loads its encoder


@dataclass(frozen=True)
class Load:
    """What hosts are given: messages, sounds that differ, their seconds; ``own`` settings."""

    messages: int
    clips: int
    seconds: float
    buckets: Sequence[str]
    cores: int
    own: Mapping[str, Any]


class Hosts:
    """Servers and sounds for worker hosts that take turns, or share the device."""

    def __init__(self, root: Path, load: Load, device: str) -> None:
        """Start the servers, and fill the buckets."""
        (root / "sounds").mkdir()
        self._root, self._load, self._device = root, load, device
        self._processes = processes_for(Settings(device="cuda" if device == "cuda" else "cpu"))
        self._sounds: Sounds = sounds(
            root / "sounds", load.messages, load.clips, load.seconds, words=True
        )
        self.rig = Rig(root, load.buckets, batch_s=None)
        self._sounds.fill(self.rig, load.buckets)

    def measure(self, width: float, text: str) -> dict[str, dict[str, float]]:
        """Measure one host from each bucket; two that share the device from the last."""
        folder = bundle(width, text, self._root)
        encoder, rows = f"{name_of(width)}, {text}", dict[str, dict[str, float]]()
        for bucket in self._load.buckets:
            rows[f"{encoder}, {bucket}"] = self._run(bucket, folder, hosts=1)
        shared = self._load.buckets[-1]
        rows[f"{encoder}, {shared}, two hosts"] = self._run(shared, folder, hosts=2)
        return rows

    def _run(self, bucket: str, folder: Path, hosts: int) -> dict[str, float]:
        processes = max(1, self._processes // hosts)
        shape = Shape(processes, self._load.cores)
        with ExitStack() as stack:
            running: list[Host] = []
            for _ in range(hosts):
                own = {
                    "device": self._device,
                    "processes": processes,
                    "metrics_listen": f"127.0.0.1:{free_port()}",
                    **self._load.own,
                }
                if running:
                    own["index_name"] = running[0].settings.index_name
                running.append(stack.enter_context(self.rig.host(bucket, shape, folder, own=own)))
            for host in running:
                self._await(host)
            first, warm_up = running[0], self._sounds.warm_up
            first.measure(warm_up)
            before = [_told(host, "audiofuse_device_busy_seconds_total") for host in running]
            measured = first.measure(self._sounds.keys)
            after = [_told(host, "audiofuse_device_busy_seconds_total") for host in running]
            outcomes = sum((host.outcomes() for host in running), Counter[str]())
            expected(outcomes, Outcome.CREATED, len(self._sounds.texts))
        seconds = len(self._sounds.keys) / measured.clips_per_s
        busy = sum(now - then for now, then in zip(after, before, strict=True))
        return {
            "clips/s": measured.clips_per_s,
            "device busy": busy / seconds,
            "CPU ms a message": measured.ours_ms if hosts == 1 else math.nan,
            "MiB of a host": measured.mib[-1],
            "processes of a host": float(processes),
        }

    def _await(self, host: Host) -> None:
        """Return once a host has loaded its encoder, on the device that was asked for."""
        deadline = time.monotonic() + PATIENCE_S
        while not _told(host, "audiofuse_device_info", f'device="{self._device}"'):
            host.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"a host did not load its encoder on {self._device}")
            time.sleep(10 * POLL_S)


def _told(host: Host, name: str, label: str = "") -> float:
    """Return the sum of a metric's series that have a label; 0 while the host tells nothing."""
    try:
        text = httpx.get(f"http://{host.settings.metrics_listen}/metrics", timeout=30).text
    except httpx.TransportError:
        return 0.0
    found = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for labels, value in found if label in labels)
