"""Scenarios of a worker's host: what its processes are to each other when one of them ends."""

from collections.abc import Callable

import psutil
from deployment import WORKERS, until
from faults import DEADLY
from stage import Content, Stage

from audiofuse.core.errors import Reason
from audiofuse.workers.host.supervisor import DEVICE, TAKER

RATE = 32_000  # Hz, so that nothing is resampled and the first sample stays what it is
WAV = b"RIFF%sWAVEfmt \x10\0\0\0\1\0\1\0\x00\x7d\0\0\x00\xfa\0\0\2\0\x10\0data%s"


def device_killed(stage: Stage) -> None:
    """Kill the device's process of one worker after the other, in the middle."""
    _each(stage, DEVICE, psutil.Process.kill)


def taker_killed(stage: Stage) -> None:
    """Kill a process that takes messages, and let its worker start another."""
    _each(stage, TAKER, psutil.Process.kill)


def device_stalled(stage: Stage) -> None:
    """Let the device's process stand still for some seconds, and end when it is to go on."""
    devices = [stage.deployment.processes(name, DEVICE)[0] for name in WORKERS]
    for device in devices:
        device.suspend()
    stage.churn(60)
    stage.pause(6)
    devices[0].kill()
    devices[1].resume()
    stage.churn(20)


def deadly_sound(stage: Stage) -> None:
    """Put a sound that the device's process dies of, among others: it is found and given up."""
    deployment = stage.deployment
    for name in WORKERS:
        deployment.stop_orderly(name)
        deployment.start(name, "deadly")
    for name in WORKERS:
        deployment.wait_until_ready(name)
    stage.churn(30)
    noise = bytes(stage.random.randbytes(RATE))
    first = round(DEADLY * 2**15).to_bytes(2, "little")
    size = (len(noise) + len(first)).to_bytes(4, "little")
    stage.put(stage.new_key("wav"), Content(WAV % (size, size) + first + noise, Reason.CRASHED))
    stage.fill(30)  # in whose batches it is
    stage.settle()
    for name in WORKERS:
        deployment.stop_orderly(name)
        deployment.start(name)


def _each(stage: Stage, module: str, end: Callable[[psutil.Process], object]) -> None:
    for name in WORKERS:
        stage.deployment.wait_until_ready(name)
        (process, *_) = stage.deployment.processes(name, module)
        stage.churn(40)
        stage.pause(0.3)
        end(process)
        stage.churn(20)
        until(
            lambda gone=process.pid, name=name: _is_replaced(stage, name, module, gone),
            f"another {module} of {name}",
        )


def _is_replaced(stage: Stage, name: str, module: str, gone: int) -> bool:
    found = stage.deployment.processes(name, module)
    return bool(found) and gone not in {each.pid for each in found}


SCENARIOS = (device_killed, taker_killed, device_stalled, deadly_sound)
