"""What is kept from us, or is not to be fetched, costs only itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from local_encoder import LocalEncoder

from audiofuse.core.audio.windows import OpenSound
from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.items import ObjectInfo
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.telemetry.names import Outcome

SOUNDS = Path(__file__).parents[4] / "examples" / "sounds"
OWL = SOUNDS / "animals/owl.wav"
CROW = SOUNDS / "animals/crow.flac"
KEY = "night/owl + 100%é.wav"


class Unreadable(FolderStore):
    """A bucket that tells of its objects, but keeps some of them from us."""

    kept: frozenset[str] = frozenset()
    headers_too = False

    def head(self, key: str) -> ObjectInfo | None:
        """Look, unless not even that is allowed."""
        self._refuse(key, refuses=self.headers_too)
        return super().head(key)

    @contextmanager
    def open(self, info: ObjectInfo) -> Iterator[Path]:
        """Open what is not kept from us."""
        self._refuse(info.key, refuses=True)
        with super().open(info) as path:
            yield path

    def _refuse(self, key: str, *, refuses: bool) -> None:
        if refuses and key in self.kept:
            raise Rejected(Reason.UNREADABLE, "it is archived")


@pytest.fixture
def unreadable(world: Any) -> Unreadable:
    """Return the world's bucket, which may keep objects from us."""
    store = Unreadable(world.root)
    limits = Limits(duration_s=60, object_bytes=10_000_000)
    index = IndexSide(world.index, world.generation, world.letters)
    world.syncer = Syncer(BucketSide(store, limits), index, LocalEncoder(world.encoder))
    return store


@pytest.mark.parametrize("headers_too", [False, True])
def test_an_object_that_is_kept_from_us_has_a_letter_until_it_is_not(
    world: Any,
    unreadable: Unreadable,
    headers_too: bool,  # noqa: FBT001 - a parameter of pytest's
) -> None:
    """Archived, denied or encrypted against us: it is that object's letter, and no outage."""
    world.put(KEY, OWL)
    unreadable.kept, unreadable.headers_too = frozenset([KEY]), headers_too
    for _ in range(2):
        with pytest.raises(Rejected, match="archived"):
            world.syncer.sync(KEY)
    assert world.verdicts() == {KEY: Reason.UNREADABLE}
    unreadable.kept = frozenset()
    assert world.syncer.sync(KEY).outcome is Outcome.CREATED
    assert world.verdicts() == {}


def test_a_sidecar_that_is_kept_from_us_is_read_once_it_is_not(
    world: Any, unreadable: Unreadable
) -> None:
    """The audio is indexed alone; the same sidecar is tried again, though nothing has changed."""
    world.put(KEY, OWL)
    world.put(KEY + ".json", b'{"title": "An owl"}')
    unreadable.kept = frozenset([KEY + ".json"])
    assert world.syncer.sync(KEY).outcome is Outcome.CREATED
    assert world.verdicts() == {KEY + ".json": Reason.UNREADABLE}
    unreadable.kept = frozenset()
    assert world.syncer.sync(KEY).outcome is Outcome.REFUSED
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["title"] == "An owl"
    assert world.verdicts() == {}


def test_vectors_are_fetched_only_to_fuse_anew(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most messages need no vector of the point that is there: they only compare its state."""
    get, asked = world.index.get, []

    def counted(*arguments: object, vectors: bool = False) -> object:
        asked.append(vectors)
        return get(*arguments, vectors=vectors)  # type: ignore[arg-type]

    monkeypatch.setattr(world.index, "get", counted)
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.syncer.sync(KEY)
    world.put(KEY, CROW)
    world.syncer.sync(KEY)
    assert not any(asked)
    world.put(KEY + ".json", b'{"title": "An owl"}')
    assert world.syncer.sync(KEY).outcome is Outcome.REFUSED
    assert asked.count(True) == 1


def test_a_decoding_that_a_stop_ends_changes_nothing(world: Any) -> None:
    """A pool of decoders that closes is no verdict: the point stays, and there is no letter."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY, CROW)

    @contextmanager
    def closing(_: str, __: Path, ___: float) -> Iterator[OpenSound]:
        raise Unavailable("the worker stops")
        yield

    limits = Limits(duration_s=60, object_bytes=10_000_000)
    bucket = BucketSide(FolderStore(world.root), limits, closing)
    index = IndexSide(world.index, world.generation, world.letters)
    with pytest.raises(Unavailable, match="stops"):
        Syncer(bucket, index, LocalEncoder(world.encoder)).sync(KEY)
    assert world.payload(KEY) is not None
    assert world.verdicts() == {}
