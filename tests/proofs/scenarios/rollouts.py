"""Scenarios of a rollout on which something goes wrong, while uploads go on."""

import time

from deployment import WORKERS
from stage import Stage

from audiofuse.core.bundles.bundle import save_bundle
from audiofuse.core.bundles.registry import open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.model.config import TINY

COMMAND_S = 300
UPLOAD_S = 2
TRIES = 5
FORCED = ("--force", "quality", "--force", "services")
# After which of its steps a command is killed, one after the other; then it is left alone.
KILLED_AFTER = {
    "start": ("create 1", "write 1", "sync 1"),
    "promote": ("promote 1", "write 1", "promote 1"),
    "drop": ("write 1", "drop 1"),
}
SIGKILL = -9


def rollout_killed(stage: Stage) -> None:
    """Kill each command between any two of its steps; the same command again finishes it."""
    stage.churn(30)
    version = _publish(stage, Encoder.random(TINY, seed=stage.random.randrange(1, 10**6)))
    words = {"start": (version,), "promote": FORCED, "drop": ()}
    for command, steps in KILLED_AFTER.items():
        for step in steps:
            stage.deployment.order("rollout", step)
            _run(stage, command, *words[command], fault="killed", code=SIGKILL)
        _run(stage, command, *words[command])
    assert [each.version for each in stage.deployment.index.generations()] == [version]


def registry_away_for_one(stage: Stage) -> None:
    """Keep the rollout's document from one worker while the other version is made live."""
    deployment, (name, _) = stage.deployment, WORKERS
    deployment.stop_orderly(name)
    deployment.start(name, "unmounted")
    stage.churn(20)
    version = _publish(stage, Encoder.random(TINY, seed=stage.random.randrange(1, 10**6)))
    deployment.wait_until_ready(name)
    _run(stage, "start", version)
    deployment.order(name)
    # What this worker has in hand waits, so that the other version lacks it: forced all the same.
    said = _run(stage, "promote", *FORCED, "--force", "coverage", code=1)
    assert "not followed by: worker" in said.replace("\n", " "), said
    stage.churn(20)
    deployment.withdraw(name)
    _run(stage, "promote", *FORCED)
    stage.churn(20)
    _run(stage, "drop")


def _publish(stage: Stage, encoder: Encoder) -> str:
    """Publish an encoder, beside the live one; what is indexed is compared with what it hears."""
    deployment = stage.deployment
    registry = open_registry(deployment.settings)
    if registry.rollout()[0] is None:
        registry.publish(deployment.settings.encoder)
    bundle = save_bundle(encoder, deployment.root / "made", f"made{time.time_ns()}", "")
    deployment.encodes_by(encoder)
    return registry.publish(bundle)


def _run(stage: Stage, *words: str, fault: str = "", code: int = 0) -> str:
    """Run a command while uploads go on; it must end with ``code``.

    On a busy machine a gate may find that what is uploaded lags behind: then it is run again.
    """
    for _ in range(TRIES):
        ended, said = _run_once(stage, *words, fault=fault)
        if "not passed: coverage" not in " ".join(said.split()):
            break
    assert ended == code, f"{' '.join(words)} ended with {ended}: {said}"
    return said


def _run_once(stage: Stage, *words: str, fault: str) -> tuple[int, str]:
    process = stage.deployment.rollout(*words, fault=fault)
    deadline = time.monotonic() + COMMAND_S
    while process.poll() is None and time.monotonic() < deadline:
        stage.churn(3)
        time.sleep(UPLOAD_S)
    if process.poll() is None:
        process.kill()
        raise TimeoutError(f"{' '.join(words)} has not ended after {COMMAND_S} s")
    return process.returncode, process.communicate()[0]


SCENARIOS = (rollout_killed, registry_away_for_one)
