"""Scenarios of what refuses, or cannot be had: Qdrant's answers, new processes."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deployment import WORKERS, until
from stage import Stage

from audiofuse.core.errors import Reason

KEY = "AUDIOFUSE_QDRANT_API_KEY"
REFUSALS: tuple[tuple[int, dict[str, str], bool], ...] = (  # status, headers, done all the same
    (403, {}, False),
    (408, {}, True),
    (429, {}, False),
    (429, {"Retry-After": "1"}, False),
    (507, {}, False),
)
WAITS_S = 5  # longer than three tries of a bug take
FEW = 3  # lines that tell of an outage; the second and third if work was still in hand at its end


def key_rotated(stage: Stage) -> None:
    """Give Qdrant another key for a while: all waits, one line tells of it, nothing is rejected."""
    deployment = stage.deployment
    stage.churn(30)
    deployment.kill("index")
    with _refused(stage, 401):
        deployment.start("index", **{KEY: "another"})
        stage.churn(60)
        time.sleep(stage.number(60))
    deployment.kill("index")
    deployment.start("index")
    stage.churn(20)


def qdrant_refuses(stage: Stage) -> None:
    """Have Qdrant refuse for a while: a lock, its own time limit, two rate limits, a full disk."""
    deployment = stage.deployment
    stage.churn(30)
    deployment.kill("index")
    deployment.start("index", "refuses")
    for status, headers, done in REFUSALS:
        stage.churn(20)
        with _refused(stage, status):
            order = {"status": status, "headers": headers, "done": done}
            deployment.order("index", json.dumps(order))
            stage.churn(30)
        deployment.withdraw("index")
        stage.settle()


@contextmanager
def _refused(stage: Stage, status: int) -> Iterator[None]:
    """Have workers refused with a status meanwhile; each tells of it once, and rejects nothing."""
    before = {name: len(_told(stage, name, status)) for name in WORKERS}

    def told() -> list[list[str]]:
        return [_told(stage, name, status)[before[name] :] for name in WORKERS]

    yield
    until(lambda: any(told()), f"that they are refused with {status}")
    time.sleep(WAITS_S)
    letters = stage.deployment.letters
    reasons = {
        key: each.reason for key, each in letters.get(letters.keys(prefix=stage.prefix)).items()
    }
    assert Reason.BUG not in reasons.values(), f"letters in an outage: {reasons}"
    for lines in told():
        assert len(lines) <= FEW, f"{len(lines)} lines tell of one outage: {lines}"


def _told(stage: Stage, name: str, status: int) -> list[str]:
    """Return what a worker said of being refused, in warnings and worse."""
    lines = stage.deployment.log(name).splitlines()
    return [each for each in lines if f"refuses with {status}" in each and " INFO " not in each]


def no_new_processes(stage: Stage) -> None:
    """Kill the decoders while no process can be started in their place."""
    deployment = stage.deployment
    for name in WORKERS:
        deployment.stop_orderly(name)
        deployment.start(name, "forkless")
    stage.churn(30)
    stage.settle()
    for name in WORKERS:
        deployment.wait_until_ready(name)
        deployment.order(name)
        for decoder in deployment.decoders(name):
            decoder.kill()
    stage.churn(60)
    waiting = "no decoding process starts"
    until(lambda: all(waiting in deployment.log(name) for name in WORKERS), "that none starts")
    stage.pause(8)
    for name in WORKERS:
        deployment.withdraw(name)
    stage.churn(20)


SCENARIOS = (key_rotated, qdrant_refuses, no_new_processes)
