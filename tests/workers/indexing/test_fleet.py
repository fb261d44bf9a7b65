"""Several workers on one broker: they share the work, and one that is killed is made up for."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from bundles import saved_bundle
from fastapi import FastAPI
from pydantic import SecretStr
from redis import Redis

from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.index import embedded
from audiofuse.core.index.index import Index, connect_embedded, open_index
from audiofuse.core.settings import Settings, environment
from audiofuse.workers.deployment.local import Part
from audiofuse.workers.queue.broker import Dispatcher, create_celery, open_lanes
from audiofuse.workers.telemetry.names import Lane

Eventually = Callable[..., Any]
OWL = Path(__file__).parents[3] / "examples" / "sounds" / "animals" / "owl.wav"
SOUNDS = 150
WORKERS = 2


@pytest.fixture
def settings(
    redis: Redis,
    valkey_url: str,
    tmp_path: Path,
    tiny_encoder: Encoder,
    serving: Callable[[FastAPI], AbstractContextManager[str]],
) -> Iterator[Settings]:
    """Return settings of a fleet for a folder of equal sounds."""
    del redis
    (tmp_path / "bucket").mkdir()
    for number in range(SOUNDS):
        shutil.copy(OWL, tmp_path / "bucket" / f"{number:03}.wav")
    client = connect_embedded()
    with serving(embedded.create_app(client, "key")) as url:
        yield Settings(
            bucket=str(tmp_path / "bucket"),
            broker_url=SecretStr(valkey_url),
            qdrant_url=url,
            qdrant_api_key=SecretStr("key"),
            encoder=saved_bundle(tiny_encoder, tmp_path / "encoders", "tiny", "card"),
            decoders=1,
            in_hand=8,
            redelivery_s=5,
        )
    client.close()


@pytest.fixture
def fleet(settings: Settings, tmp_path: Path) -> Iterator[list[Part]]:
    """Start the workers."""
    command = [sys.executable, "-m", "audiofuse", "worker"]
    variables = os.environ | environment(settings)
    workers = [
        Part(f"worker {number}", command, variables, tmp_path / f"{number}.log")
        for number in range(WORKERS)
    ]
    yield workers
    for worker in workers:
        worker.stop()


def _points(index: Index) -> int:
    live = index.live()
    return index.count(live) if live else 0


def test_a_fleet_shares_the_work_and_makes_up_for_a_loss(
    settings: Settings, fleet: list[Part], tmp_path: Path, eventually: Eventually
) -> None:
    """Both take from one queue; when one is killed with its hands full, the other does it all."""
    logs = [tmp_path / f"{number}.log" for number in range(WORKERS)]
    eventually(lambda: all("batches of" in log.read_text() for log in logs), 90)
    dispatcher, index = Dispatcher(create_celery(settings)), open_index(settings)
    lanes = open_lanes(settings)
    for number in range(SOUNDS):
        dispatcher.sync(f"{number:03}.wav", Lane.LIVE)
    eventually(lambda: all(log.read_text().count(": created") > 5 for log in logs))
    fleet[0].process.kill()
    eventually(lambda: not lanes.backlog(Lane.LIVE))
    assert _points(index) == SOUNDS
    done = [log.read_text().count(": created") for log in logs]
    assert (
        sum(done) >= SOUNDS - settings.in_hand
    )  # whose line the killed one did not write any more
    assert sum(done) <= SOUNDS + settings.in_hand
