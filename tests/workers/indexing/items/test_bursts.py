"""Many changes of one object within a moment cost little."""

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from audiofuse.core.errors import Unavailable
from audiofuse.workers.indexing.items import sync
from audiofuse.workers.indexing.retries import RetryPolicy
from audiofuse.workers.telemetry.names import Lane, Outcome

SOUNDS = Path(__file__).parents[4] / "examples" / "sounds"
OWL = SOUNDS / "animals/owl.wav"
CROW = SOUNDS / "animals/crow.flac"
KEY = "night/owl + 100%é.wav"


def test_a_burst_of_changes_is_heard_twice(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of many changes is heard at once, the rest as one: what came while it waited."""
    monkeypatch.setattr(sync, "BURST_S", 5.0)
    encoded: list[object] = []
    encode = world.encoder.encode_audio
    monkeypatch.setattr(world.encoder, "encode_audio", lambda w: encoded.append(w) or encode(w))
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    assert (len(encoded), world.pauses) == (1, [])

    def wait_while_it_changes(seconds: float) -> None:
        world.pauses.append(seconds)
        world.put(KEY, SOUNDS / "animals/duck-quack.wav")
        monkeypatch.setattr(sync, "BURST_S", 0.0)  # so much time has passed

    world.put(KEY, CROW.read_bytes())
    world.wait = wait_while_it_changes
    world.syncer.sync(KEY)
    assert len(encoded) == 2
    assert 0 < world.pauses[0] < 5
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["duration_s"] == pytest.approx(0.26, abs=0.01)


class Worker:
    """A worker's threads around a world: each message is settled by one of its own."""

    def __init__(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sync, "BURST_S", 1.0)
        world.wait = time.sleep
        encode = world.encoder.encode_audio
        self.encodings: list[object] = []
        monkeypatch.setattr(
            world.encoder, "encode_audio", lambda w: self.encodings.append(w) or encode(w)
        )
        syncers, stopping = dict.fromkeys(Lane, world.syncer), threading.Event()
        self._policy = RetryPolicy(syncers, self, stopping)  # type: ignore[arg-type]
        self._pool = ThreadPoolExecutor(32)
        self._settled: list[Future[bool]] = []

    def sync(self, key: str, _: Lane = Lane.LIVE, __: float | None = None) -> None:
        """Hand over a message, as a dispatcher does."""
        self._settled.append(self._pool.submit(self._policy.settle, key, Lane.LIVE))

    def settled(self) -> bool:
        """Wait for all messages, and those they led to; tell whether all may be acknowledged."""
        return all(each.result(20) for each in self._settled)  # a list may grow meanwhile


def test_ten_changes_within_a_second_are_heard_twice(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a burst the first state is heard at once and the last soon after; all is settled."""
    worker = Worker(world, monkeypatch)
    world.put(KEY, OWL)
    started = time.monotonic()
    worker.sync(KEY)
    while world.payload(KEY) is None:
        time.sleep(0.01)
    assert time.monotonic() - started < 0.8  # a first upload waits for nothing
    for number in range(10):
        source = CROW if number % 2 else OWL
        world.put(KEY, SOUNDS / "animals/duck-quack.wav" if number == 9 else source)
        worker.sync(KEY)
        time.sleep(0.05)
    assert worker.settled()
    assert len(worker.encodings) == 2
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["duration_s"] == pytest.approx(0.26, abs=0.01)


def test_sound_and_sidecar_uploaded_together_are_heard_once(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However their messages and uploads interleave, the sound is heard once, and with words."""
    worker = Worker(world, monkeypatch)
    for number in range(10):
        key, sidecar = f"{number}.wav", f"{number}.json"
        first, second = (key, sidecar) if number % 2 else (sidecar, key)
        for each in (first, second):
            world.put(each, OWL if each == key else b'{"title": "An owl"}')
            worker.sync(each)
    assert worker.settled()
    assert len(worker.encodings) == 10
    payloads = [world.payload(f"{number}.wav") for number in range(10)]
    assert [payload["title"] for payload in payloads if payload] == ["An owl"] * 10


def test_a_stopping_worker_waits_for_no_burst(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop, it gives up waiting for the end of a burst, and with that the message."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY, CROW)
    monkeypatch.setattr(sync, "BURST_S", 5.0)
    world.wait = lambda _: True
    with pytest.raises(Unavailable, match="stops"):
        world.syncer.sync(KEY)


def test_other_words_do_not_wait_for_the_end_of_a_burst(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar that comes just after its sound is fused at once: that costs next to nothing."""
    monkeypatch.setattr(sync, "BURST_S", 5.0)
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY + ".json", b'{"title": "An owl"}')
    assert world.syncer.sync(KEY).outcome is Outcome.REFUSED
    assert world.pauses == []
