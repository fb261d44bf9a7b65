"""Message processes and the device: each ask has its own answer, whatever ends meanwhile."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from bundles import saved_bundle
from devices import device_in_threads, listening_at, start_device

from audiofuse.core.audio.windows import SAMPLE_RATE, WINDOW_SAMPLES, Samples
from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.loading import load_folder
from audiofuse.core.encoder.embeddings import EncodedItem, WindowEmbedding
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import BundleError, ConfigurationError, Reason, Rejected, Unavailable
from audiofuse.core.model.config import TINY, Grid
from audiofuse.core.moments.windows import Cutting, EncodedWindows
from audiofuse.core.settings import Settings
from audiofuse.workers.indexing.decoding.pool import Decoders
from audiofuse.workers.indexing.device.server import Server
from audiofuse.workers.indexing.exchange import client as client_module
from audiofuse.workers.indexing.exchange.client import DeviceClient, EncoderOnDevice
from audiofuse.workers.indexing.exchange.slab import Slab
from audiofuse.workers.telemetry.names import Lane

Eventually = Callable[..., Any]
SLOTS = 4
SOUNDS = Path(__file__).parents[4] / "examples" / "sounds"
DEADLY = 0.125  # the first sample of a sound that ends the device's process
FAULT = f"""
from audiofuse.core.encoder.encoder import Encoder
encode = Encoder.encode_windows
def deadly(self, windows):
    if any(window[0] == {DEADLY} for window in windows):
        os._exit(9)
    return encode(self, windows)
Encoder.encode_windows = deadly
"""


def noise(seconds: float, seed: int = 0) -> list[Samples]:
    """Return noise in windows."""
    made = np.random.default_rng(seed).random(int(seconds * SAMPLE_RATE), np.float32) - 0.5
    return np.split(made, range(WINDOW_SAMPLES, made.size, WINDOW_SAMPLES))


class Side:
    """A message process's side, with as many messages as a test says."""

    def __init__(self, settings: Settings, path: Path) -> None:
        self.working = 1
        self.slab = Slab(SLOTS)
        self.client = DeviceClient(path, self.slab, lambda: self.working)
        assert settings.encoder is not None
        self.version = settings.encoder.name
        self.facts = self.client.use(self.version).result(60)
        self.encoder = self.client.on(self.version, self.facts, Lane.LIVE)

    def close(self) -> None:
        """End it."""
        self.client.close()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Encoder) -> Settings:
    """Return settings with a tiny encoder."""
    bundle = saved_bundle(tiny_encoder, tmp_path_factory.mktemp("encoders"), "tiny", "")
    return Settings(encoder=bundle, device="cpu", batch_s=40)


@pytest.fixture
def server(settings: Settings, tmp_path: Path) -> Iterator[Server]:
    """Return a device in threads of this process."""
    with device_in_threads(settings, tmp_path / "device") as served:
        yield served


@pytest.fixture
def side(settings: Settings, server: Server, tmp_path: Path) -> Iterator[Side]:
    """Return a message process's side of it."""
    del server
    with closing(Side(settings, tmp_path / "device")) as made:
        yield made


def _assert_as_alone(settings: Settings, windows: list[Samples], got: EncodedItem) -> None:
    assert settings.encoder is not None
    encoder = load_folder(settings, settings.encoder)
    alone = encoder.encode_audio(windows)
    fused = encoder.fuse(alone, ["words"])
    np.testing.assert_allclose(got.audio, alone.pooled[0], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(got.item, fused.vectors[0], atol=1e-5)
    assert got.norm == pytest.approx(fused.norms[0], rel=1e-5)


@pytest.mark.parametrize("seconds", [1.5, 10, 20, 63])
def test_a_sound_gets_the_vectors_it_has_alone(
    side: Side, settings: Settings, seconds: float
) -> None:
    """Of any length, with a last window that is shorter or full, and more than there are slots."""
    windows = noise(seconds)
    got = side.encoder.encode("a.wav", windows, "words")
    _assert_as_alone(settings, windows, got)
    again = side.encoder.fuse("a.wav", got.audio, "words")
    np.testing.assert_allclose(again.item, got.item, atol=1e-6)
    assert side.slab.free == SLOTS


def test_windows_that_decoders_wrote_cross_without_a_copy(
    side: Side, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoding process writes into the slab; nothing takes another slot for it."""
    monkeypatch.setattr(side.slab, "lend", _counted(side.slab.lend))
    path = SOUNDS / "animals/crickets.wav"
    with closing(Decoders(1, 60, side.slab)) as decoders, decoders.open(path, 60) as recording:
        got = side.encoder.encode("crickets.wav", recording.windows(), "words")
    assert side.slab.lend.count == side.slab.lend.slots  # type: ignore[attr-defined]
    with closing(Decoders(1, 60)) as decoders, decoders.open(path, 60) as recording:
        _assert_as_alone(settings, list(recording.windows()), got)


def _counted(lend: Callable[[int, int], Any]) -> Any:
    class Counted:
        count = slots = 0

        def __call__(self, slot: int, samples: int) -> Any:
            self.count += 1
            window = lend(slot, samples)
            self.slots += bool(np.any(window))  # it had been written when it was lent
            return window

    return Counted()


def test_many_threads_of_two_processes_share_batches(
    settings: Settings, server: Server, tmp_path: Path
) -> None:
    """Whose a window is makes no difference to a batch, and each sound gets its own vectors."""
    with (
        closing(Side(settings, tmp_path / "device")) as one,
        closing(Side(settings, tmp_path / "device")) as two,
        ThreadPoolExecutor(8) as threads,
    ):
        one.working = two.working = 4
        sounds = [noise(2, seed) for seed in range(8)]
        asked = [
            threads.submit((one, two)[n % 2].encoder.encode, f"{n}", windows, "words")
            for n, windows in enumerate(sounds)
        ]
        for windows, answer in zip(sounds, asked, strict=True):
            _assert_as_alone(settings, windows, answer.result(60))
        device = server.encoders.device(one.version)
        assert device is not None
        assert device.stats.batches < len(sounds)


def test_audio_that_waits_is_bounded(
    side: Side, server: Server, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the device is busy no more windows of a sound are decoded than make a batch."""
    device, gate, read = server.encoders.device(side.version), threading.Event(), []
    assert device is not None
    whole = device.encoder.encode_windows
    monkeypatch.setattr(
        device.encoder, "encode_windows", lambda windows: gate.wait(60) and whole(windows)
    )

    def windows() -> Iterator[Samples]:
        for window in noise(120):
            read.append(window)
            yield window

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(side.encoder.encode, "long.wav", windows(), "")
        eventually(lambda: len(read) == SLOTS)
        assert side.slab.free == 0
        gate.set()
        assert answer.result(60)
    assert (len(read), side.slab.free) == (12, SLOTS)


def test_a_recording_of_ten_hours_takes_the_memory_of_a_short_one(
    side: Side, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its moments are handed over while it is heard, and a slow taker slows the reading down."""
    device = server.encoders.device(side.version)
    assert device is not None
    rng, channels = np.random.default_rng(0), device.encoder.audio_dim

    def cheap(windows: list[Samples]) -> list[WindowEmbedding]:
        frames = rng.random((32, channels), np.float32)
        return [WindowEmbedding(frames.sum(0), 32, frames) for _ in windows]

    monkeypatch.setattr(device.encoder, "encode_frames", cheap)
    one, read, taken, ahead = np.zeros(WINDOW_SAMPLES, np.float32), 0, 0, 0

    def windows(hours: int) -> Iterator[Samples]:
        nonlocal read
        for _ in range(hours * 360):
            read += 1
            yield one

    def take(cut: EncodedWindows) -> None:
        nonlocal taken, ahead
        taken += len(cut.audio)
        ahead = max(ahead, 2 * read - taken)  # windows of 5 s that were read and not yet taken

    def memory_mb(hours: int) -> float:
        side.encoder.encode("long.wav", windows(hours), "", Cutting(Grid(), take))
        return float(psutil.Process().memory_info().rss) / 1e6

    short_mb = memory_mb(1)
    assert memory_mb(9) - short_mb < 40  # nine hours of windows alone would be 6480 * 4 kB
    assert taken == 7200
    assert ahead < 2 * 64 + 4 * SLOTS


def test_who_takes_moments_may_fail(side: Side, eventually: Eventually) -> None:
    """What the taker raises ends the sound, and the device goes on."""

    def take(_: EncodedWindows) -> None:
        raise Unavailable("the index is away")

    with pytest.raises(Unavailable, match="the index is away"):
        side.encoder.encode("long.wav", noise(30), "", Cutting(Grid(), take))
    assert side.encoder.encode("good.wav", noise(1), "")
    eventually(lambda: side.slab.free == SLOTS)


def test_stored_moments_are_fused_anew(side: Side) -> None:
    """Many at once, from their audio vectors, as when they were heard."""
    taken: list[EncodedWindows] = []
    side.encoder.encode("long.wav", noise(30), "rain", Cutting(Grid(), taken.append))
    (heard,) = taken
    fused = side.encoder.fuse_windows("long.wav", heard.audio, "rain")
    np.testing.assert_allclose(fused.vectors, heard.fused.vectors, atol=1e-6)
    assert heard.spans.tolist() == [[start, start + 5] for start in range(0, 30, 5)]


def test_a_sound_that_proves_bad_leaves_nothing_behind(side: Side, eventually: Eventually) -> None:
    """What its decoding raises is raised, its slots come back, and the next is encoded."""

    def windows() -> Iterator[Samples]:
        yield from noise(20)
        raise Rejected(Reason.DAMAGED, "cut off")

    with pytest.raises(Rejected, match="cut off"):
        side.encoder.encode("bad.wav", windows(), "")
    assert side.encoder.encode("good.wav", noise(1), "")
    eventually(lambda: side.slab.free == SLOTS)


def test_a_version_goes_when_nobody_uses_it(
    settings: Settings, server: Server, tmp_path: Path, eventually: Eventually
) -> None:
    """It stays while one process needs it; one that ends needs nothing."""
    one, two = (Side(settings, tmp_path / "device") for _ in range(2))
    one.client.drop(one.version)
    assert two.encoder.encode("a.wav", noise(1), "")
    two.close()
    eventually(lambda: server.encoders.device(one.version) is None)
    with pytest.raises(Unavailable, match="not loaded"):
        one.encoder.encode("a.wav", noise(1), "")
    one.close()


def test_what_is_wrong_with_a_bundle_is_told(side: Side, tmp_path: Path) -> None:
    """A version that cannot be loaded tells whoever wants it why, as loading it here would."""
    del tmp_path
    with pytest.raises(ConfigurationError, match="no-such-000000"):
        side.client.use("no-such-000000").result(60)
    assert not issubclass(BundleError, Unavailable)


def test_a_device_that_ends_is_made_up_for(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its asks are unavailable, its slots come back, and the next has loaded what was in use.

    The sound that it dies of is given up after three times; the one beside it is not.
    """
    monkeypatch.setattr(client_module, "CONNECT_S", 0.05)
    with listening_at(tmp_path / "device") as listening:
        device = start_device(settings, listening, FAULT)
        deadly = noise(2)
        deadly[0][0] = DEADLY
        with closing(Side(settings, tmp_path / "device")) as side, ThreadPoolExecutor(2) as threads:
            side.working = 2  # they share the first batch
            both = [("deadly.wav", deadly), ("good.wav", noise(2, 1))]
            first = [threads.submit(side.encoder.encode, *each, "words") for each in both]
            for answer in first:
                with pytest.raises(Unavailable, match="ended"):
                    answer.result(60)
            side.working = 1
            for _ in range(2):
                assert device.wait(60) == 9
                device = start_device(settings, listening, FAULT)
                with pytest.raises(Unavailable, match="ended"):
                    side.encoder.encode("deadly.wav", deadly, "words")
            device.wait(60)
            device = start_device(settings, listening, FAULT)
            with pytest.raises(Rejected) as caught:
                side.encoder.encode("deadly.wav", deadly, "words")
            assert caught.value.reason is Reason.CRASHED
            assert "3 times" in caught.value.detail
            _assert_as_alone(settings, both[1][1], side.encoder.encode(*both[1], "words"))
            assert side.slab.free == SLOTS
            assert side.client.runs_on() == ["cpu by onnxruntime"]  # as this device said
            threads.submit(partial(os.kill, device.pid, 9)).result()
        device.wait(60)


def test_a_closed_client_answers_whoever_waits(
    side: Side, server: Server, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """A worker that stops leaves no thread waiting for the device, nor for a slot."""
    device, gate = server.encoders.device(side.version), threading.Event()
    assert device is not None
    monkeypatch.setattr(device.encoder, "encode_windows", lambda _: gate.wait(60))
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(_encode, side.encoder, seconds) for seconds in (1, 90)]
        eventually(lambda: side.slab.free == 0)
        side.close()
        for answer in asked:
            with pytest.raises(Unavailable):
                answer.result(60)
    gate.set()
    with pytest.raises(Unavailable):
        _encode(side.encoder, 1)


def _encode(encoder: EncoderOnDevice, seconds: float) -> EncodedItem:
    return encoder.encode(f"{seconds}.wav", noise(seconds), "")


def test_mid_fusion_needs_no_frames_to_cross(tmp_path: Path) -> None:
    """An encoder that fuses frames gives the item that it gives alone, and says it must hear."""
    encoder = Encoder.random(TINY.model_copy(update={"fusion": "mid"}), seed=0)
    settings = Settings(encoder=save_bundle(encoder, tmp_path, "mid", ""), device="cpu", batch_s=40)
    with (
        device_in_threads(settings, tmp_path / "device"),
        closing(Side(settings, tmp_path / "device")) as side,
    ):
        assert not side.encoder.fuses_stored_audio
        windows = noise(23)
        _assert_as_alone(settings, windows, side.encoder.encode("a.wav", windows, "words"))
