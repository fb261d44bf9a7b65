"""The whole path on this machine, from a dropped sound to a found one: ``make demo``.

Starts the local deployment for an empty folder, copies ``examples/sounds`` into it, asks, drops one
more sound, deletes it, and stops everything. State is kept in ``.demo`` and cleared on each run,
except for the encoder bundle.
"""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from audiofuse.core.errors import AudiofuseError
from audiofuse.core.index.index import Index, open_index
from audiofuse.core.items import is_audio, point_id
from audiofuse.core.settings import Settings
from audiofuse.workers.commands.terminal.display import drops_table, hits_table
from audiofuse.workers.deployment.local import LocalDeployment
from audiofuse.workers.queue.broker import connect_redis
from audiofuse.workers.queue.dead_letters import DeadLetter, DeadLetters
from audiofuse.workers.service.client import ask

ROOT = Path(__file__).resolve().parent.parent
SOUNDS = ROOT / "examples" / "sounds"
HOME = ROOT / ".demo"
LATER = Path("animals/owl.wav")  # dropped at the end, and deleted again
DROP_TIMEOUT_S = 120
POLL_S = 0.05
LIMIT = 4
QUERIES = {
    "a rooster crowing at dawn": "only listening finds it: the file has no sidecar and a mute name",
    "an infant wailing": "only listening finds it; no sidecar has these words",
    "someone playing a stringed instrument": "words and sound together",
    "old record player noise": "words and sound together",
    "a wolf howling": "and where, in a recording of 90 s whose words tell nothing of it",
    "water flowing from a tap": "only listening finds it: the file has no sidecar and a mute name",
}

console = Console()


class Bucket:
    """The demo's bucket folder, and what the deployment knows of the sounds in it."""

    def __init__(self, settings: Settings) -> None:
        """Watch through the same index and dead letters that the deployment writes."""
        self.root = Path(settings.bucket)
        self._index: Index = open_index(settings)
        self._letters = DeadLetters(connect_redis(settings), settings.index_name)

    def drop(self, sound: Path) -> None:
        """Copy a sound's sidecars, then the sound, into the bucket."""
        target = self.root / sound
        target.parent.mkdir(parents=True, exist_ok=True)
        for name in (sound.name + ".json", sound.with_suffix(".json").name):
            sidecar = SOUNDS / sound.parent / name
            if sidecar.exists():
                shutil.copy(sidecar, target.parent)
        shutil.copy(SOUNDS / sound, target)

    def searchable(self, keys: Sequence[str]) -> set[str]:
        """Return which of the keys are in the live generation of the index now."""
        live = self._index.live()
        if live is None:
            return set()
        ids = {str(point_id(self.root.name, key)): key for key in keys}
        return {ids[found] for found in self._index.get(live, list(ids))}

    def rejected(self, keys: Sequence[str]) -> dict[str, DeadLetter]:
        """Return which of the keys were rejected, and why."""
        return self._letters.get(keys)


def main() -> int:
    """Run the demo; return the exit code."""
    for name in ("bucket", "index", "valkey"):
        shutil.rmtree(HOME / name, ignore_errors=True)
    (HOME / "bucket").mkdir(parents=True)
    console.rule("starting")
    console.print("Valkey, embedded Qdrant, a Celery worker, the query service, the folder intake")
    started = time.monotonic()
    with LocalDeployment(Settings(home=HOME, bucket=str(HOME / "bucket"))) as deployment:
        console.print(f"ready after {time.monotonic() - started:.1f} s")
        settings = deployment.settings
        bucket = Bucket(settings)
        failures = drop_all(bucket)
        for query, why in QUERIES.items():
            show(settings, query, why)
        drop_and_delete_one(settings, bucket)
    console.rule("done")
    console.print(
        "Everything is stopped. To go on with a folder of your own:\n"
        "  .venv/bin/audiofuse up --bucket FOLDER\n"
        "  .venv/bin/audiofuse search 'a dog barking'"
    )
    return 1 if failures else 0


def drop_all(bucket: Bucket) -> int:
    """Drop every example sound but one, show how long each took; return how many failed."""
    console.rule("dropping sounds into the bucket")
    paths = (path for path in SOUNDS.rglob("*") if is_audio(path.name))
    sounds = sorted(path.relative_to(SOUNDS) for path in paths)
    waiting: dict[str, float] = {}
    took: dict[str, float] = {}
    errors: dict[str, str] = {}
    with Progress(console=console) as progress:
        bar = progress.add_task("searchable", total=len(sounds) - 1)
        for sound in sounds:
            if sound != LATER:
                bucket.drop(sound)
                waiting[sound.as_posix()] = time.monotonic()
            watch(bucket, waiting, took, errors)
            progress.update(bar, completed=len(took) + len(errors))
        deadline = time.monotonic() + DROP_TIMEOUT_S
        while waiting and time.monotonic() < deadline:
            time.sleep(POLL_S)
            watch(bucket, waiting, took, errors)
            progress.update(bar, completed=len(took) + len(errors))
    errors |= dict.fromkeys(waiting, f"not searchable after {DROP_TIMEOUT_S} s")
    console.print(drops_table(took, errors))
    return len(errors)


def watch(
    bucket: Bucket, waiting: dict[str, float], took: dict[str, float], errors: dict[str, str]
) -> None:
    """Move what became searchable or was rejected out of ``waiting``."""
    for key in bucket.searchable(list(waiting)):
        took[key] = time.monotonic() - waiting.pop(key)
    for key, letter in bucket.rejected(list(waiting)).items():
        errors[key] = f"{letter.reason}: {letter.detail}"
        del waiting[key]


def show(settings: Settings, query: str, why: str) -> None:
    """Ask and show the answer."""
    console.rule("searching")
    console.print(hits_table(query, ask(settings.search_url, query, LIMIT)), f"[dim]{why}[/]\n")


def drop_and_delete_one(settings: Settings, bucket: Bucket) -> None:
    """Show that a sound is found after it is dropped, and gone after it is deleted."""
    key = LATER.as_posix()
    console.rule("one more sound comes and goes")
    bucket.drop(LATER)
    seconds = wait_until(lambda: bool(bucket.searchable([key])), f"{key} is not found")
    console.print(f"{key} dropped: searchable after {seconds:.2f} s")
    show(settings, "an owl hooting at night", "the new sound is among them")
    (bucket.root / LATER).unlink()
    seconds = wait_until(lambda: not bucket.searchable([key]), f"{key} is not removed")
    console.print(f"{key} deleted: gone after {seconds:.2f} s")
    show(settings, "an owl hooting at night", "it is gone")
    hits = ask(settings.search_url, "an owl hooting at night", 1000)
    if any(hit["key"] == key for hit in hits):
        raise AudiofuseError(f"{key} is still found after it was deleted")


def wait_until(done: Callable[[], bool], failure: str) -> float:
    """Wait until ``done``, return how many seconds that took."""
    started = time.monotonic()
    while not done():
        if time.monotonic() - started > DROP_TIMEOUT_S:
            raise AudiofuseError(f"{failure} after {DROP_TIMEOUT_S} s")
        time.sleep(POLL_S)
    return time.monotonic() - started


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AudiofuseError as error:
        console.print(f"the demo failed: {error}", style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; everything is stopped")
        sys.exit(130)
