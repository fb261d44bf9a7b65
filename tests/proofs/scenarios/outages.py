"""Scenarios of processes that are killed, or stand still."""

from deployment import REDELIVERY_S, WORKERS, until
from stage import Stage


def worker_killed(stage: Stage) -> None:
    """Kill workers in the middle, one after the other."""
    for name in WORKERS:
        stage.churn(60)
        stage.pause(0.5)
        stage.deployment.kill(name)
        stage.deployment.start(name)


def worker_stopped(stage: Stage) -> None:
    """Stop workers in an orderly way while they decode long sounds that replace short ones.

    Every other time decoding lasts for longer than a worker may take to stop, so that it goes back.
    """
    keys = [stage.put(stage.new_key("wav"), stage.sound()) for _ in range(stage.number(6))]
    stage.settle()
    for turn in range(stage.number(10)):
        for key in keys:
            stage.put(key, stage.long_sound(turn))
        stage.pause(1)
        name = WORKERS[turn // 2 % len(WORKERS)]
        stage.deployment.wait_until_ready(name)
        if turn % 2 == 0:
            for decoder in stage.deployment.decoders(name):
                decoder.suspend()
        stage.deployment.stop_orderly(name)
        stage.deployment.start(name)


def worker_stalled(stage: Stage) -> None:
    """Stall a worker until the other has what it has, and then let it go on."""
    stage.churn(80)
    stage.pause(0.3)
    with stage.deployment.stalled(WORKERS[0], REDELIVERY_S + 7):
        for _ in range(4):
            stage.churn(20)
            stage.pause(2)
    stage.settle()
    # Its messages are no longer its own, so that no queue tells when it has mended what it wrote.
    until(lambda: not stage.differences(), "mended", 30)


def intake_killed(stage: Stage) -> None:
    """Kill the intake in the middle, twice."""
    for _ in range(2):
        stage.churn(60)
        stage.pause(0.3)
        stage.deployment.kill("intake")
        stage.churn(20)
        stage.deployment.start("intake")


def valkey_killed(stage: Stage) -> None:
    """Kill Valkey, and start it again on its file."""
    _killed(stage, "valkey")


def valkey_stalled(stage: Stage) -> None:
    """Stall Valkey."""
    _stalled(stage, "valkey", 6)


def store_stalled(stage: Stage) -> None:
    """Stall the bucket, and with it who uploads."""
    _stalled(stage, "store", 6)


def index_stalled(stage: Stage) -> None:
    """Stall Qdrant until requests have failed that are still in its queue."""
    _stalled(stage, "index", 36)


def _stalled(stage: Stage, name: str, seconds: float) -> None:
    stage.churn(60)
    with stage.deployment.stalled(name, seconds):
        stage.churn(60)
    stage.churn(20)


def _killed(stage: Stage, name: str) -> None:
    stage.churn(60)
    stage.deployment.kill(name)
    stage.churn(30)
    stage.pause(3)
    stage.deployment.start(name)
    stage.churn(30)


def index_killed(stage: Stage) -> None:
    """Kill Qdrant, and start it again on its files."""
    _killed(stage, "index")


SCENARIOS = (
    intake_killed, worker_killed, worker_stopped, worker_stalled, valkey_killed, valkey_stalled,
    store_stalled, index_killed, index_stalled,
)  # fmt: skip
