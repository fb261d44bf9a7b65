"""Scenarios of the bucket: events that go astray, sounds and sidecars that come and go."""

import os
import subprocess
import sys

from stage import Stage

from audiofuse.core.items import is_audio, sidecar_keys
from audiofuse.core.settings import environment


def duplicated(stage: Stage) -> None:
    """Send every event three times."""
    stage.deployment.notify(on=False)
    keys = stage.fill(60) * 3
    stage.tell(stage.random.sample(keys, len(keys)))


def shuffled(stage: Stage) -> None:
    """Send events in another order than things happened."""
    stage.deployment.notify(on=False)
    for _ in range(3):
        keys = stage.churn(60)
        stage.tell(stage.random.sample(keys, len(keys)))


def dropped(stage: Stage) -> None:
    """Lose one event in ten; then run ``audiofuse reconcile``."""
    stage.deployment.notify(on=False)
    stage.tell(key for key in stage.churn(150) if stage.random.random() < 0.9)
    stage.settle()
    subprocess.run(
        [sys.executable, "-m", "audiofuse", "reconcile", "--prefix", stage.prefix],
        env=os.environ | environment(stage.deployment.settings), check=True, capture_output=True,
    )  # fmt: skip


def delayed(stage: Stage) -> None:
    """Send events seconds late, while things change on."""
    stage.deployment.notify(on=False)
    late: list[str] = []
    for _ in range(5):
        late += stage.churn(25)
        stage.random.shuffle(late)
        on_time = len(late) // 2
        stage.tell(late[:on_time])
        late = late[on_time:]
        stage.pause(1.5)
    stage.tell(late)


def storm(stage: Stage) -> None:
    """Write over a few sounds again and again."""
    keys = [stage.new_key() for _ in range(5)]
    for _ in range(stage.number(30)):
        for key in keys:
            stage.put(key, stage.sound())
        stage.pause(0.1)


def sidecar_first(stage: Stage) -> None:
    """Put the words before their sound."""
    for _ in range(stage.number(20)):
        key = stage.new_key()
        stage.put(stage.random.choice(sidecar_keys(key)), stage.sidecar())
        stage.pause(0.1)
        stage.put(key, stage.sound())


def sidecar_last(stage: Stage) -> None:
    """Put the words after their sound."""
    for _ in range(stage.number(20)):
        key = stage.put(stage.new_key(), stage.sound())
        stage.pause(0.1)
        stage.put(stage.random.choice(sidecar_keys(key)), stage.sidecar())


def sidecar_alone(stage: Stage) -> None:
    """Put words that have no sound."""
    for _ in range(stage.number(20)):
        stage.put(stage.random.choice(sidecar_keys(stage.new_key())), stage.sidecar())


def sidecar_changed(stage: Stage) -> None:
    """Change the words, and which of two sidecars counts."""
    keys = [stage.put(stage.new_key(), stage.sound()) for _ in range(stage.number(10))]
    for _ in range(5):
        for key in keys:
            stage.put(stage.random.choice(sidecar_keys(key)), stage.sidecar())
        stage.pause(0.5)


def sidecar_deleted(stage: Stage) -> None:
    """Delete the words, or their sound and not them."""
    for key in stage.fill(40):
        if not is_audio(key) or stage.random.random() < 0.2:
            stage.pause(0.05)
            stage.delete(key)


def deleted_in_work(stage: Stage) -> None:
    """Delete sounds while they are worked on; put some of them back."""
    for _ in range(stage.number(40)):
        key = stage.put(stage.new_key(), stage.sound())
        stage.pause(0.15)
        stage.delete(key)
        if stage.random.random() < 0.3:
            stage.put(key, stage.sound())


def renamed(stage: Stage) -> None:
    """Give sounds and sidecars other names, and some each other's."""
    stage.fill(30)
    stage.settle()
    sounds = sorted(filter(is_audio, stage.truth))
    for key in sounds:
        new = stage.new_key()
        for old_sidecar, new_sidecar in zip(sidecar_keys(key), sidecar_keys(new), strict=True):
            if old_sidecar in stage.truth:
                stage.rename(old_sidecar, new_sidecar)
        stage.rename(key, new)
    sounds = sorted(filter(is_audio, stage.truth))
    for one, other in zip(sounds[::2], sounds[1::2], strict=False):
        between = stage.new_key()
        stage.rename(one, between)
        stage.rename(other, one)
        stage.rename(between, other)


SCENARIOS = (
    duplicated, shuffled, dropped, delayed, storm, sidecar_first, sidecar_last, sidecar_alone,
    sidecar_changed, sidecar_deleted, deleted_in_work, renamed,
)  # fmt: skip
