"""The encoders that the device process has loaded: each while a message process uses it."""

import gc
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np

from audiofuse.core.audio.windows import WINDOW_SAMPLES
from audiofuse.core.bundles.loading import load_folder
from audiofuse.core.bundles.manifest import bundle_version
from audiofuse.core.bundles.registry import locate
from audiofuse.core.memory import give_back_freed
from audiofuse.core.settings import Settings
from audiofuse.core.threads import end_process
from audiofuse.workers.indexing.device.device import Device
from audiofuse.workers.indexing.device.fair_lock import FairLock
from audiofuse.workers.indexing.exchange.protocol import EncoderFacts
from audiofuse.workers.telemetry import metrics

log = logging.getLogger(__name__)

SPARE_CPUS = 1  # that the encoder leaves to decoders and threads; 0 helps where it does nearly all
LOOK_S = 5.0  # between two looks whether a batch still runs; raised, a hang is noticed later


class Encoders:
    """Loads versions, and makes each a device. They share the processor, and take turns."""

    def __init__(self, settings: Settings, working: Callable[[], int]) -> None:
        """Load by ``settings``; ``working`` tells how many messages are worked on in all."""
        self._settings = settings
        self._working = working
        self._turn = FairLock()
        self._lock = threading.Lock()  # of what is loaded
        self._loading = threading.Lock()  # one at a time: each needs all CPUs, and memory
        self._devices: dict[str, Device] = {}
        self._users = Counter[str]()

    def use(self, version: str) -> EncoderFacts:
        """Load a version unless it is, and keep it for one user more; raises what loading does."""
        with self._lock:
            self._users[version] += 1
        try:
            with self._loading:
                device = self._devices.get(version) or self._load(version)
        except BaseException:
            self.drop(version)
            raise
        encoder, grid = device.encoder, device.encoder.config.grid
        return EncoderFacts(
            dim=encoder.dim,
            audio_dim=encoder.audio_dim,
            fuses_stored_audio=encoder.fuses_stored_audio,
            windows=astuple(grid) if grid else None,
            audio_fingerprint=encoder.audio_fingerprint,
            batch_s=device.batch_s,
            device=encoder.device,
            runtime=encoder.runtime.name,
        )

    def drop(self, version: str) -> None:
        """Let go of a version for one user; the last takes it along."""
        with self._lock:
            self._users[version] -= 1
            unused = self._users[version] <= 0
            device = self._devices.pop(version, None) if unused else None
            if unused:
                del self._users[version]
        if device:
            device.close()
            log.info("encoder %s is let go of; %s", version, device.stats)
            del device
            gc.collect()
            give_back_freed()

    def device(self, version: str) -> Device | None:
        """Return the device of a version that is loaded."""
        return self._devices.get(version)

    def _load(self, version: str) -> Device:
        started = time.monotonic()
        encoder = load_folder(self._settings, self._folder(version), SPARE_CPUS)
        tell_device(encoder.device, self._settings.device, encoder.runtime.name)
        with self._lock:
            known = next(iter(self._devices.values()), None)
        batch_s = known.batch_s if known else self._settings.batch_s
        with self._turn:
            silence = [np.zeros(WINDOW_SAMPLES, np.float32)]
            encoder.fuse(encoder.encode_audio(silence), ["warm up"])
        device = Device(encoder, batch_s, partial(self._may_ask, version), self._turn)
        metrics.BATCH_CAPACITY.set(device.batch_s)
        with self._lock:
            self._devices[version] = device
        log.info(
            "encoder %s is loaded on %s by %s, in %.1f s",
            version, encoder.device, encoder.runtime.name, time.monotonic() - started,
        )  # fmt: skip
        return device

    def _folder(self, version: str) -> Path:
        """Return the bundle of a version: the one that is set, or a published one."""
        given = self._settings.encoder
        if given is not None and bundle_version(given) == version:
            return given
        return locate(self._settings, version)

    def _may_ask(self, version: str) -> int:
        """Return how many may ask a version's device: those that wait for no other's."""
        with self._lock:
            others = [each for name, each in self._devices.items() if name != version]
        return self._working() - sum(other.askers for other in others)

    def watch(self) -> None:
        """End this process once a batch takes so long that it never ends."""
        while True:
            time.sleep(LOOK_S)
            with self._lock:
                devices = list(self._devices.values())
            if any(device.stuck for device in devices):
                log.critical("the device does not answer")
                end_process()

    def __str__(self) -> str:
        """Tell what was done by each."""
        with self._lock:
            return "; ".join(f"{name}: {each.stats}" for name, each in self._devices.items())


def tell_device(device: str, asked: str, runtime: str) -> None:
    """Tell where and by which ``runtime`` is computed, and what was ``asked`` for."""
    metrics.DEVICE_INFO.labels(device, asked, runtime).set(1)
    if device == "cuda":
        import torch  # noqa: PLC0415 - takes seconds, where it is not needed

        total = torch.cuda.get_device_properties(device).total_memory
        metrics.DEVICE_MEMORY.labels("total").set(total)
        for memory, ask in (
            ("allocated", torch.cuda.memory_allocated),
            ("reserved", torch.cuda.memory_reserved),
        ):
            metrics.DEVICE_MEMORY.labels(memory).set_function(partial(ask, device))
