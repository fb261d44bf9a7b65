"""A comparison finds every difference between bucket and index, and nothing else."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from local_encoder import LocalEncoder
from redis import Redis

from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.index.index import Point
from audiofuse.core.items import ObjectInfo, point_id
from audiofuse.workers.repair.comparison import UNREADABLE_AGAIN_S, compare
from audiofuse.workers.repair.findings import Finding

if TYPE_CHECKING:
    from audiofuse.core.encoder.encoder import Encoder

World = Any  # see conftest.py
SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"


CHANGES: dict[str, tuple[Callable[[World], None], list[str]]] = {
    "nothing": (lambda _: None, []),
    "new sound": (lambda w: w.put("new.wav"), ["new.wav"]),
    "new sound with words": (lambda w: w.put("new.wav", "new.json"), ["new.wav"]),
    "replaced sound": (lambda w: w.put("owl.wav"), ["owl.wav"]),
    "deleted sound": (lambda w: w.delete("owl.wav"), ["owl.wav"]),
    "new words": (lambda w: w.put("owl.wav.json"), ["owl.wav"]),
    "new words by the stem": (lambda w: w.put("owl.json"), ["owl.wav"]),
    "other words": (lambda w: w.put("night/crow + 100%é.wav.json"), ["night/crow + 100%é.wav"]),
    "better words": (lambda w: w.put("night/crow + 100%é.json"), []),  # the longer name still wins
    "no more words": (
        lambda w: w.delete("night/crow + 100%é.wav.json"),
        ["night/crow + 100%é.wav"],
    ),
    "deleted with its words": (
        lambda w: (w.delete("night/crow + 100%é.wav"), w.delete("night/crow + 100%é.wav.json"))[0],
        ["night/crow + 100%é.wav"],
    ),
    "other files": (lambda w: w.put("notes.txt", ".hidden.wav", "night/lonely.json"), []),
    "several": (
        lambda w: (w.put("a.wav", "owl.json"), w.delete("night/crow + 100%é.wav"))[1],
        ["a.wav", "night/crow + 100%é.wav", "owl.wav"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_difference_is_found_and_nothing_else(world: World, change: str) -> None:
    """Missing, outdated and orphaned points are named by their audio keys, each once."""
    apply, expected = CHANGES[change]
    apply(world)
    assert world.differences() == expected


def test_words_move_to_the_sidecar_that_wins(world: World) -> None:
    """When the winning sidecar goes, the one behind it counts, which is a difference too."""
    world.put("owl.json")
    world.put("owl.wav.json")
    world.index_as_seen("owl.wav")
    assert world.differences() == []
    world.delete("owl.wav.json")
    assert world.differences() == ["owl.wav"]
    world.index_as_seen("owl.wav")
    assert world.differences() == []


def test_a_change_of_headers_alone_is_found(world: World) -> None:
    """An object copied onto itself with other user metadata has a new time, if not a new etag."""
    before = world.store.head("owl.wav")
    assert before is not None
    payload = {
        "bucket": "bucket",
        "key": "owl.wav",
        "etag": before.etag,
        "sidecar_etag": "",
        "modified": before.modified_ms - 1,
    }
    assert world.generation is not None
    point = Point(str(point_id("bucket", "owl.wav")), payload, (1, 0), (1, 0))
    world.index.upsert(world.generation, [point])
    assert world.differences() == ["owl.wav"]


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", ["gone.wav", "night/gone.wav", "night/new.wav", "night2/new.wav", "owl.wav"]),
        ("night", ["night/gone.wav", "night/new.wav", "night2/new.wav"]),
        ("night/", ["night/gone.wav", "night/new.wav"]),
        ("night/n", ["night/new.wav"]),
        ("day/", []),
    ],
)
def test_a_prefix_limits_what_is_compared(world: World, prefix: str, expected: list[str]) -> None:
    """Neither bucket nor index is looked at outside the prefix: nothing there seems orphaned."""
    world.put("gone.wav", "night/gone.wav")
    world.index_as_seen("gone.wav", "night/gone.wav")
    world.delete("gone.wav")
    world.delete("night/gone.wav")
    world.put("night/new.wav", "night2/new.wav", "owl.json")
    assert world.differences(prefix) == expected


def test_what_was_rejected_as_it_is_now_is_left_alone(world: World) -> None:
    """A hopeless object is not tried at each comparison, but again once it changed."""
    world.put("silent.wav")
    world.reject("silent.wav")
    assert world.differences() == []
    world.put("silent.wav")
    assert world.differences() == ["silent.wav"]


def test_what_could_not_be_read_is_tried_again_after_a_day(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that is archived or forbidden may be readable later, though it does not change."""
    world.put("archived.wav", "silent.wav")
    world.reject("archived.wav", Reason.UNREADABLE)
    world.reject("silent.wav")
    assert world.differences() == []
    later = time.time() + UNREADABLE_AGAIN_S + 1
    monkeypatch.setattr("audiofuse.workers.repair.comparison.time.time", lambda: later)
    assert world.differences() == ["archived.wav"]


def test_a_prefix_walks_its_own_points_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of a folder asks the index for that folder's points and for no others."""
    walked = []
    scroll = world.index.scroll

    def noting(*asked: Any) -> Iterator[Point]:
        for point in scroll(*asked):
            walked.append(point.payload["key"])
            yield point

    monkeypatch.setattr(world.index, "scroll", noting)
    assert world.differences("night/") == []
    assert walked == ["night/crow + 100%é.wav"]


def test_keys_are_settled_once_they_agree_or_are_judged_anew(world: World) -> None:
    """A sound is done when its point agrees or it has a new letter, a lost one when all is gone."""
    world.put("new.wav", "bad.wav", "again.wav", "waiting.wav", "gone.wav")
    world.index_as_seen("gone.wav")
    world.delete("gone.wav")
    world.reject("again.wav", Reason.UNREADABLE)
    keys = ["new.wav", "bad.wav", "again.wav", "waiting.wav", "gone.wav"]

    def unsettled() -> list[str]:
        ids = {str(point_id(world.store.bucket, key)): key for key in keys}
        points = world.index.get(world.generation, list(ids))
        payloads = {ids[id_]: point.payload for id_, point in points.items()}
        found: list[str] = comparison.unsettled(keys, payloads, world.letters.get(keys))
        return found

    with compare(world.store, world.index, world.generation, world.letters) as comparison:
        assert unsettled() == keys
        world.index_as_seen("new.wav")
        world.reject("bad.wav")
        assert unsettled() == ["again.wav", "waiting.wav", "gone.wav"]
        world.reject("again.wav", Reason.UNREADABLE)
        world.index.remove(world.generation, [str(point_id(world.store.bucket, "gone.wav"))])
        assert unsettled() == ["waiting.wav"]


def test_a_letter_about_no_known_state_does_not_stand_in_the_way(world: World) -> None:
    """Only a verdict on the very object that is there now keeps it from being tried."""
    world.put("crash.wav")
    world.letters.add("crash.wav", Rejected(Reason.BUG, "its worker died"))
    assert world.differences() == ["crash.wav"]


def test_a_point_of_a_rejected_object_is_still_an_orphan_when_it_is_gone(world: World) -> None:
    """A letter never keeps a point alive whose object was deleted."""
    world.reject("owl.wav")
    world.delete("owl.wav")
    assert world.differences() == ["owl.wav"]


def test_a_letter_whose_object_is_gone_is_told(world: World) -> None:
    """An object deleted unnoticed is named once, so that its letter is cleared."""
    world.put("silent.wav", "night/silent.wav")
    world.reject("silent.wav")
    world.reject("night/silent.wav")
    assert world.differences() == []
    world.delete("silent.wav")
    world.delete("night/silent.wav")
    assert world.differences() == ["night/silent.wav", "silent.wav"]
    assert world.differences("night/") == ["night/silent.wav"]
    world.generation = None
    assert world.differences("s") == ["silent.wav"]


def test_points_of_another_bucket_are_left_alone(
    world: World, tmp_path: Path, redis: Redis
) -> None:
    """An index that served another bucket before holds nothing to be synced for this one."""
    (tmp_path / "other").mkdir()
    other = world.new(tmp_path / "other", redis)
    other.index, other.generation = world.index, world.generation
    other.put("owl.wav", "elsewhere.wav")
    other.index_as_seen("owl.wav", "elsewhere.wav")
    assert world.differences() == []
    world.delete("owl.wav")
    assert world.differences() == ["owl.wav"]


def test_lost_letters_cost_one_more_try(world: World, redis: Redis) -> None:
    """Losing Redis loses no sound: what was rejected is found to be missing."""
    world.put("silent.wav")
    world.reject("silent.wav")
    redis.flushall()
    assert world.differences() == ["silent.wav"]


def test_without_a_generation_everything_is_missing(world: World) -> None:
    """Before anything was indexed every sound is named, but for what was rejected."""
    world.put("silent.wav")
    world.reject("silent.wav")
    world.generation = None
    assert world.differences() == ["night/crow + 100%é.wav", "owl.wav"]


def test_every_sound_is_counted_once(world: World) -> None:
    """The summary says how many sounds are missing, outdated, orphaned, rejected, and agreed."""
    world.put("gone.wav", "was-silent.wav")
    world.index_as_seen("gone.wav")
    world.reject("was-silent.wav")
    world.put("new.wav", "silent.wav", "owl.json")
    world.reject("silent.wav")
    world.reject("gone.wav")
    world.delete("gone.wav")
    world.delete("was-silent.wav")
    found = {"missing": 1, "outdated": 1, "orphaned": 2, "rejected": 1, "agreed": 1}
    assert world.counts() == found
    world.generation = None
    assert world.counts() == found | {"missing": 3, "outdated": 0, "agreed": 0}


def test_findings_can_be_chosen(world: World) -> None:
    """Who asks for what was rejected, or agrees, gets just that."""
    world.put("new.wav", "silent.wav")
    world.reject("silent.wav")
    with compare(world.store, world.index, world.generation, world.letters) as comparison:
        assert list(comparison.keys(Finding.REJECTED)) == ["silent.wav"]
        assert len(list(comparison.keys(*Finding))) == 4


def test_a_listing_that_is_cut_short_finds_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket that stops answering on the way makes no point an orphan."""

    def listing(_: str) -> Iterator[ObjectInfo]:
        yield ObjectInfo("new.wav", "e1", 1, 1)
        raise Unavailable("the bucket is away")

    monkeypatch.setattr(world.store, "list", listing)
    with pytest.raises(Unavailable, match="the bucket is away"):
        world.differences()


def test_a_full_disk_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for its temporary file a comparison ends as something to try again later."""
    connect = sqlite3.connect

    def connect_to_little(name: str) -> sqlite3.Connection:
        database = connect(name)
        database.execute("PRAGMA max_page_count = 2")
        return database

    monkeypatch.setattr(sqlite3, "connect", connect_to_little)
    world.put(*(f"{number:0200}.wav" for number in range(100)))
    with pytest.raises(Unavailable, match="temporary file: database or disk is full"):
        world.differences()


def test_a_second_run_finds_what_is_left(world: World) -> None:
    """A run that dies half-way costs nothing: what was synced is done, the rest is found again."""
    names = [f"{number}.wav" for number in range(20)]
    world.put(*names)
    synced = world.found()[:8]
    world.index_as_seen(*synced)
    assert world.differences() == sorted(set(names) - set(synced))


def test_what_sync_wrote_is_no_difference(world: World, tiny_encoder: "Encoder") -> None:
    """Comparison and sync agree on what a point's state is, so reconciling comes to an end."""
    from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
    from audiofuse.workers.indexing.items.sync import Syncer

    for name in ("animals/owl.wav", "animals/owl.json", "animals/crow.flac"):
        world.put(name)
        (world.root / name).write_bytes((SOUNDS / name).read_bytes())
    world.delete("owl.wav")
    world.delete("night/crow + 100%é.wav")
    generation = world.generation = world.index.create("tiny-111111", tiny_encoder)
    limits = Limits(duration_s=60, object_bytes=10_000_000)
    syncer = Syncer(
        BucketSide(world.store, limits),
        IndexSide(world.index, generation),
        LocalEncoder(tiny_encoder),
    )
    found = world.differences()
    assert found == ["animals/crow.flac", "animals/owl.wav"]
    for key in found:
        syncer.sync(key)
    assert world.differences() == []
