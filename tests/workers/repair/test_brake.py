"""A bucket that seems to have lost very much empties no index."""

from typing import Any

import pytest
from redis import Redis

from audiofuse.workers.repair import brake
from audiofuse.workers.repair.brake import Brake, Removals
from audiofuse.workers.repair.reconcile import Reconciler

World = Any  # see conftest.py


@pytest.mark.parametrize(
    ("lost", "items", "held"),
    [(100, 100, False), (101, 101, True), (101, 505, False), (101, 500, True), (0, 0, False)],
)
def test_the_brake_holds_beyond_both_bounds(lost: int, items: int, *, held: bool) -> None:
    """More than a hundred items and more than a fifth of all must be lost."""
    assert Removals(lost, items).are_too_many is held


@pytest.fixture
def reconciler(world: World, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Reconciler:
    """Return what compares the world, with a brake that holds from the second lost item on."""
    monkeypatch.setattr(brake, "LOST_ITEMS", 1)
    return Reconciler(world.store, world.index, redis, "audiofuse")


@pytest.fixture
def held(redis: Redis) -> Brake:
    """Return the record of what is held back."""
    return Brake(redis, "audiofuse")


def _empty(world: World) -> None:
    for path in sorted(world.root.rglob("*.wav*")):
        path.unlink()


def test_a_bucket_that_is_empty_all_at_once_empties_no_index(
    world: World, reconciler: Reconciler, held: Brake, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a mount is missing nothing is queued, and log and record say what to do."""
    _empty(world)
    assert list(reconciler.differences("")) == []
    record = held.held()
    assert record
    assert (record.lost, record.items) == (2, 2)
    assert "2 of 2 items have lost their objects" in caplog.text
    assert "audiofuse reconcile --remove" in caplog.text


def test_what_is_new_is_queued_though_the_brake_holds(world: World, reconciler: Reconciler) -> None:
    """Only removals are held back: what was uploaded is indexed."""
    _empty(world)
    world.put("new.wav")
    assert list(reconciler.differences("")) == ["new.wav"]


def test_what_an_operator_removes_is_queued(
    world: World, reconciler: Reconciler, held: Brake
) -> None:
    """With ``remove`` the orphans are queued, and nothing is held back any more."""
    _empty(world)
    assert list(reconciler.differences("")) == []
    with reconciler.compare(remove=True) as comparison:
        keys = list(comparison.keys(*comparison.to_queue(remove=True)))
    assert sorted(keys) == ["night/crow + 100%é.wav", "owl.wav"]
    assert held.held() is None


def test_a_mount_that_is_back_releases_the_brake(
    world: World, reconciler: Reconciler, held: Brake
) -> None:
    """Comparing all of what was held back, or more, lets go; comparing something else does not."""
    away = world.root.rename(world.root.with_name("away"))
    world.root.mkdir()
    assert list(reconciler.differences("")) == []
    world.root.rmdir()
    away.rename(world.root)
    assert list(reconciler.differences("night/")) == []
    assert held.held()
    assert list(reconciler.differences("")) == []
    assert held.held() is None


def test_a_dry_run_records_nothing(world: World, reconciler: Reconciler, held: Brake) -> None:
    """Who only looks neither sets the brake nor releases it."""
    _empty(world)
    with reconciler.compare(record=False) as comparison:
        assert comparison.removals.are_too_many
    assert held.held() is None


def test_a_folder_that_is_a_small_part_may_go(world: World, reconciler: Reconciler) -> None:
    """A folder's orphans are weighed against the whole index, not against the folder."""
    keys = [f"many/{number}.wav" for number in range(20)]
    world.put(*keys, "few/1.wav", "few/2.wav")
    world.index_as_seen(*keys, "few/1.wav", "few/2.wav")
    world.delete("few/1.wav")
    world.delete("few/2.wav")
    assert sorted(reconciler.differences("few/")) == ["few/1.wav", "few/2.wav"]
