"""Scenarios of several buckets: one is in trouble, and the others must not feel it."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from deployment import WORKERS, until
from several import ALL, FAR, FOLDERS, SeveralStage
from stage import Content

from audiofuse.core.storage.mounts import split
from audiofuse.workers.repair.brake import LOST_ITEMS, Brake

STUDIO, SPARE = FOLDERS
NEW = "new"
DENIED = 30  # sounds: more than each worker takes for the fault of single objects


def bucket_unmounted(stage: SeveralStage) -> None:
    """Move a folder away, with changes of it in the queue; kill a worker; put it back."""
    deployment = stage.deployment
    with _trouble(stage, STUDIO, deployment.replaced(STUDIO, by_nothing=True)):
        deployment.kill(WORKERS[0])
        stage.churn(30)
        deployment.start(WORKERS[0])
        stage.others_are_found(stage.number(30), trouble=STUDIO)


def bucket_hangs(stage: SeveralStage) -> None:
    """Let a bucket's server take connections and answer none; kill the other worker."""
    deployment, seconds = stage.deployment, stage.number(40)
    with _trouble(stage, FAR, deployment.stalled(FAR, seconds)):
        deployment.kill(WORKERS[1])
        deployment.start(WORKERS[1])
        stage.others_are_found(seconds, trouble=FAR)


def bucket_denied(stage: SeveralStage) -> None:
    """Let a bucket deny object after object: they wait, and nothing is rejected for it."""
    stage.churn(40)
    stage.settle()
    with stage.deployment.denied():
        for number in range(max(DENIED, stage.number(60))):
            sound = Content(stage.sounds[number % len(stage.sounds)].read_bytes())
            stage.put(f"{FAR}/{stage.scene}{number:04}.wav", sound)
        stage.others_are_found(stage.number(30), trouble=FAR)
    stage.churn(20)


def bucket_emptied(stage: SeveralStage) -> None:
    """Put an empty folder in one's place: nothing goes; empty it on purpose: all of it goes."""
    deployment = stage.deployment
    brake = Brake(deployment.redis, deployment.settings.index_name)
    for number in range(max(LOST_ITEMS + 50, stage.number(200))):
        sound = Content(stage.sounds[number % len(stage.sounds)].read_bytes())
        stage.put(f"{SPARE}/{stage.scene}{number:04}.wav", sound)
    stage.settle()
    with _trouble(stage, SPARE, deployment.replaced(SPARE, by_nothing=False)):
        until(brake.held, "the brake, by the intake's own comparison")
        told = deployment.run("reconcile", code=1)
        assert "reconcile --remove" in told, f"what to do is not told: {told}"
        stage.others_are_found(stage.number(15), trouble=SPARE)
    until(lambda: not brake.held(), "the end of the brake")
    stage.settle()
    assert not stage.differences(), "what was held back"
    deployment.kill("folders")
    for path in (deployment.root / SPARE).iterdir():
        shutil.rmtree(path)
    for key in [key for key in stage.truth if split(key)[0] == SPARE]:
        del stage.truth[key]
    deployment.run("reconcile", "--remove", "--prefix", f"{SPARE}/")
    deployment.start("folders")


def bucket_added(stage: SeveralStage) -> None:
    """Add a bucket while all goes on, and give it up: its sounds are found, and then are gone."""
    deployment = stage.deployment
    folder = deployment.root / NEW
    (folder / stage.scene).mkdir(parents=True)
    sounds = {f"{NEW}/{stage.scene}{number:04}.wav": sound for number, sound in
              enumerate(Content(path.read_bytes()) for path in stage.sounds)}  # fmt: skip
    for key, sound in sounds.items():
        (deployment.root / key).write_bytes(sound.data)
    stage.churn(20)
    deployment.have([{"name": NEW, "address": str(folder)}])
    stage.truth.update(sounds)
    stage.others_are_found(stage.number(10), trouble=NEW)
    deployment.run("backfill", "--prefix", f"{NEW}/")
    stage.settle()
    assert not (faults := stage.differences()), f"with it: {faults}"
    deployment.have([{"name": NEW, "address": None}])
    for key in sounds:
        del stage.truth[key]
    stage.churn(20)
    deployment.run("reconcile", "--remove", "--prefix", f"{NEW}/")
    stage.settle()
    deployment.have()
    stage.others_are_found(stage.number(10), trouble=NEW)


@contextmanager
def _trouble(
    stage: SeveralStage, name: str, trouble: AbstractContextManager[None]
) -> Iterator[None]:
    """Bring a bucket into trouble while changes of all are in the queue; the others change on."""
    stage.churn(60)
    stage.open_to = tuple(each for each in ALL if each != name)
    with trouble:
        yield
    stage.open_to = ALL
    stage.churn(20)


SCENARIOS = (bucket_unmounted, bucket_hangs, bucket_denied, bucket_emptied, bucket_added)
