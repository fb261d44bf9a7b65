"""sync(key) makes the index agree with the bucket, whatever it finds there."""

import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from audiofuse.core.audio.recording import OpenSound
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.encoder.fusion import AudioEmbedding
from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.index.index import Generation, Index, connect_embedded
from audiofuse.core.items import ObjectInfo, point_id
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing import sync
from audiofuse.workers.indexing.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.retries import RetryPolicy
from audiofuse.workers.indexing.sync import Syncer
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.telemetry.names import Lane, Outcome

SOUNDS = Path(__file__).parents[3] / "examples" / "sounds"
OWL = SOUNDS / "animals/owl.wav"
CROW = SOUNDS / "animals/crow.flac"
KEY = "night/owl + 100%é.wav"


class World:
    """A bucket folder, an index in memory, letters, and the syncer between them."""

    def __init__(self, root: Path, encoder: Encoder, redis: Redis) -> None:
        self.root = root
        self.encoder = encoder
        self.index = Index(connect_embedded(), "audiofuse")
        self.generation: Generation = self.index.create("tiny-000000", encoder)
        limits = Limits(duration_s=60, object_bytes=10_000_000)
        self.letters = DeadLetters(redis, root.name)
        self.pauses: list[float] = []
        self.syncer = Syncer(
            BucketSide(FolderStore(root), limits, pause=self._pause),
            IndexSide(self.index, self.generation, self.letters),
            encoder,
        )
        self.ticks = 0
        self.wait: Callable[[float], object] = self.pauses.append

    def _pause(self, seconds: float) -> object:
        return self.wait(seconds)

    def put(self, key: str, source: Path | bytes) -> None:
        """Write an object in one step, with a modification time of its own."""
        path, partial = self.root / key, self.root.with_suffix(".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
        self.ticks += 1
        os.utime(partial, (1e9 + self.ticks, 1e9 + self.ticks))
        partial.replace(path)

    def payload(self, key: str) -> dict[str, object] | None:
        """Return what the index holds of a key."""
        id_ = str(point_id(self.root.name, key))
        point = self.index.get(self.generation, [id_]).get(id_)
        return dict(point.payload) if point else None

    def verdicts(self) -> dict[str, Reason]:
        """Return what is recorded as wrong, by key."""
        return {letter.key: letter.reason for letter in self.letters.latest(10)}


@pytest.fixture
def world(
    tmp_path: Path, tiny_encoder: Encoder, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> World:
    """Return an empty world in which bursts are not waited for."""
    monkeypatch.setattr(sync, "BURST_S", 0.0)
    root = tmp_path / "bucket"
    root.mkdir()
    return World(root, tiny_encoder, redis)


def test_a_new_sound_is_indexed_with_its_words(world: World) -> None:
    """A sound with a sidecar becomes one point that holds the facts of both."""
    world.put(KEY, OWL)
    sidecar = {"title": "Owl", "keywords": "night;forest", "labels": ["Owl"], "mic": "old"}
    world.put(KEY + ".json", json.dumps(sidecar).encode())
    assert world.syncer.sync(KEY).outcome is Outcome.CREATED
    payload = world.payload(KEY)
    assert payload is not None
    expected = {
        "key": KEY,
        "bucket": "bucket",
        "title": "Owl",
        "keywords": ["night", "forest"],
        "labels": ["Owl"],
        "extra": {"mic": "old"},
        "has_text": "yes",
        "encoder": "tiny-000000",
        "sample_rate": 11025,
        "channels": 1,
        "size": OWL.stat().st_size,
    }
    assert {name: payload[name] for name in expected} == expected
    assert payload["duration_s"] == pytest.approx(0.74, abs=0.01)


def test_syncing_again_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A duplicate event costs a look at the bucket and no encoding."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    monkeypatch.setattr(world.encoder, "encode_audio", lambda _: pytest.fail("it was heard again"))
    assert world.syncer.sync(KEY).outcome is Outcome.UNCHANGED


def test_other_words_are_fused_without_listening_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed sidecar re-fuses the stored audio vector, to the vector a fresh sync gives."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY + ".json", b'{"title": "An owl"}')
    with monkeypatch.context() as patch:
        patch.setattr(world.encoder, "encode_audio", lambda _: pytest.fail("it was heard again"))
        assert world.syncer.sync(KEY).outcome is Outcome.REFUSED
    id_ = str(point_id("bucket", KEY))
    refused = world.index.get(world.generation, [id_], vectors=True)[id_]
    world.index.remove(world.generation, [id_])
    world.syncer.sync(KEY)
    fresh = world.index.get(world.generation, [id_], vectors=True)[id_]
    assert list(refused.item) == pytest.approx(list(fresh.item), abs=1e-5)
    assert refused.payload["title"] == "An owl"


def test_a_sidecar_that_goes_takes_its_words_along(world: World) -> None:
    """Without its sidecar an item is its audio alone again."""
    world.put(KEY, OWL)
    world.put(KEY + ".json", b'{"title": "An owl"}')
    world.syncer.sync(KEY)
    (world.root / (KEY + ".json")).unlink()
    assert world.syncer.sync(KEY).outcome is Outcome.REFUSED
    payload = world.payload(KEY)
    assert payload is not None
    assert (payload["title"], payload["has_text"]) == ("", "no")


def test_a_replaced_sound_is_heard_anew(world: World) -> None:
    """New bytes under the same key replace the point."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY, SOUNDS / "animals/duck-quack.wav")
    assert world.syncer.sync(KEY).outcome is Outcome.UPDATED
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["duration_s"] == pytest.approx(0.26, abs=0.01)
    assert world.index.count(world.generation) == 1


def test_a_deleted_sound_leaves_the_index(world: World) -> None:
    """Deleting removes the point; what never was is no error."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    (world.root / KEY).unlink()
    assert world.syncer.sync(KEY).outcome is Outcome.REMOVED
    assert world.payload(KEY) is None
    assert world.syncer.sync(KEY).outcome is Outcome.ABSENT


BAD = {
    "empty.wav": (b"", Reason.EMPTY),
    "text.wav": (b"this is no sound", Reason.NOT_AUDIO),
    "cut.flac": (CROW.read_bytes()[: CROW.stat().st_size // 2], Reason.DAMAGED),
    "large.wav": (bytes(10_000_001), Reason.TOO_LARGE),
}


@pytest.mark.parametrize("key", BAD)
def test_a_bad_object_is_rejected_with_its_reason(world: World, key: str) -> None:
    """Each bad object is one Rejected that knows the state it judged, and has no point."""
    content, reason = BAD[key]
    world.put(key, content)
    with pytest.raises(Rejected) as caught:
        world.syncer.sync(key)
    info = world.syncer.store.head(key)
    assert info is not None
    assert (caught.value.reason, caught.value.etag) == (reason, info.etag)
    assert world.payload(key) is None
    letter = world.letters.get([key])[key]
    assert (letter.reason, letter.etag) == (reason, info.etag)


def test_a_sound_that_turned_bad_is_not_found_any_more(world: World) -> None:
    """A point never outlives the object it describes: the good sound was replaced by a bad one."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY, b"not a sound any more")
    with pytest.raises(Rejected):
        world.syncer.sync(KEY)
    assert world.payload(KEY) is None


@pytest.mark.parametrize("sidecar", [b"{", b"[]", b'{"title": 7}', b" " * 300_000])
def test_a_broken_sidecar_costs_only_itself(world: World, sidecar: bytes) -> None:
    """The audio is indexed alone, and the sidecar is reported under its own key."""
    world.put(KEY, OWL)
    world.put(KEY + ".json", sidecar)
    synced = world.syncer.sync(KEY)
    assert synced.outcome is Outcome.CREATED
    assert [(k, p.reason) for k, p in synced.problems.items()] == [
        (KEY + ".json", Reason.BAD_SIDECAR)
    ]
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["has_text"] == "no"


def _once(world: World, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let ``act`` happen right after the first time the index is written."""
    upsert, done = world.index.upsert, []

    def write_then_act(*arguments: object) -> None:
        upsert(*arguments)  # type: ignore[arg-type]
        if not done:
            done.append(act())

    monkeypatch.setattr(world.index, "upsert", write_then_act)


def test_a_change_during_the_write_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound replaced while its point is written is looked at again: the last state wins."""
    world.put(KEY, OWL)
    _once(world, monkeypatch, lambda: world.put(KEY, SOUNDS / "animals/duck-quack.wav"))
    world.syncer.sync(KEY)
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["duration_s"] == pytest.approx(0.26, abs=0.01)


def test_a_delete_during_the_write_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound deleted while its point is written has no point in the end."""
    world.put(KEY, OWL)
    _once(world, monkeypatch, (world.root / KEY).unlink)
    assert world.syncer.sync(KEY).outcome is Outcome.REMOVED
    assert world.payload(KEY) is None


def test_a_sound_deleted_before_it_is_fetched_is_simply_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted between event and fetch, an object is absent, not rejected."""
    world.put(KEY, OWL)
    look = world.syncer._look

    def look_then_delete(key: str) -> object:
        item = look(key)
        (world.root / KEY).unlink(missing_ok=True)
        return item

    monkeypatch.setattr(world.syncer, "_look", look_then_delete)
    assert world.syncer.sync(KEY).outcome is Outcome.ABSENT


def test_a_half_copied_file_is_no_verdict(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is bad because it is still being written is looked at again, not rejected."""
    world.put(KEY, CROW.read_bytes()[:5000])
    encode = world.encoder.encode_audio

    def finish_copy_then_encode(windows: object) -> object:
        monkeypatch.setattr(world.encoder, "encode_audio", encode)
        shutil.copy(CROW, world.root / KEY)
        return encode(windows)  # type: ignore[arg-type]

    monkeypatch.setattr(world.encoder, "encode_audio", finish_copy_then_encode)
    world.syncer.sync(KEY)
    assert world.payload(KEY) is not None


def test_an_object_that_never_rests_is_left_for_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that changes at every look ends in Unavailable, not in an endless loop."""
    world.put(KEY, OWL)
    encode = world.encoder.encode_audio

    def encode_then_change(windows: object) -> object:
        world.put(KEY, OWL)
        return encode(windows)  # type: ignore[arg-type]

    monkeypatch.setattr(world.encoder, "encode_audio", encode_then_change)
    with pytest.raises(Unavailable, match="keeps changing"):
        world.syncer.sync(KEY)


def test_a_vector_that_is_not_finite_is_never_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the encoder fails numerically the item is rejected, not written as NaN."""
    world.put(KEY, OWL)
    encode = world.encoder.encode_audio
    silly = lambda windows: AudioEmbedding(encode(windows).pooled * math.nan)  # noqa: E731
    monkeypatch.setattr(world.encoder, "encode_audio", silly)
    with pytest.raises(Rejected) as caught:
        world.syncer.sync(KEY)
    assert caught.value.reason is Reason.NOT_FINITE
    assert world.payload(KEY) is None


def test_a_good_outcome_clears_old_letters(world: World) -> None:
    """Once an item is indexed nothing is held against it or its sidecars."""
    world.put(KEY, b"no sound")
    with pytest.raises(Rejected):
        world.syncer.sync(KEY)
    world.letters.add("other.wav", Rejected(Reason.NOT_AUDIO, "no sound"))
    world.put(KEY, OWL)
    world.put(KEY + ".json", b"{")
    world.syncer.sync(KEY)
    assert world.verdicts() == {KEY + ".json": Reason.BAD_SIDECAR, "other.wav": Reason.NOT_AUDIO}
    world.put(KEY + ".json", b"{}")
    world.syncer.sync(KEY)
    assert world.verdicts() == {"other.wav": Reason.NOT_AUDIO}


def test_a_deleted_object_leaves_no_letters(world: World) -> None:
    """What is gone is not wrong, neither the sound nor the sidecar that it leaves behind."""
    world.put(KEY, b"no sound")
    world.put(KEY + ".json", b"{")
    with pytest.raises(Rejected):
        world.syncer.sync(KEY)
    assert world.verdicts() == {KEY: Reason.NOT_AUDIO, KEY + ".json": Reason.BAD_SIDECAR}
    (world.root / KEY).unlink()
    world.syncer.sync(KEY)
    assert world.verdicts() == {}


def test_letters_that_differ_from_the_point_are_mended(world: World) -> None:
    """A worker that died before it wrote the letters, or wrote old ones, is made up for."""
    world.put(KEY, OWL)
    world.put(KEY + ".json", b"{")
    world.syncer.sync(KEY)
    letter = world.letters.get([KEY + ".json"])[KEY + ".json"]
    world.letters.clear([KEY + ".json"])
    world.letters.add(KEY, Rejected(Reason.NOT_AUDIO, "of another state"))
    assert world.syncer.sync(KEY).outcome is Outcome.UNCHANGED
    assert world.verdicts() == {KEY + ".json": Reason.BAD_SIDECAR}
    assert world.letters.get([KEY + ".json"])[KEY + ".json"].etag == letter.etag


def test_a_broken_sidecar_of_two_sounds_has_its_letter_until_neither_uses_it(world: World) -> None:
    """What becomes of one sound does not hide what is wrong with the other's words."""
    world.put("rain.json", b"{")
    world.put("rain.wav", OWL)
    world.put("rain.flac", CROW)
    world.syncer.sync("rain.wav")
    world.syncer.sync("rain.flac")
    (world.root / "rain.flac").unlink()
    world.syncer.sync("rain.flac")
    assert world.verdicts() == {"rain.json": Reason.BAD_SIDECAR}
    world.put("rain.wav.json", b"{}")
    world.syncer.sync("rain.wav")
    assert world.verdicts() == {}


def test_a_mended_sidecar_of_two_sounds_has_no_letter(world: World) -> None:
    """Whichever of its sounds is synced first, the letter goes."""
    for name in ("rain.wav", "rain.mp3"):
        world.put(name, OWL)
    for content, expected in ((b"{", {"rain.json": Reason.BAD_SIDECAR}), (b"{}", {})):
        world.put("rain.json", content)
        world.syncer.sync("rain.wav")
        assert world.verdicts() == expected


def test_a_verdict_on_a_state_that_is_gone_is_taken_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad object replaced while its verdict is recorded is indexed, and has no letter."""
    world.put(KEY, b"no sound")
    add = world.letters.add

    def add_then_replace(key: str, verdict: Rejected) -> None:
        add(key, verdict)
        world.put(KEY, OWL)

    monkeypatch.setattr(world.letters, "add", add_then_replace)
    assert world.syncer.sync(KEY).outcome is Outcome.CREATED
    assert world.verdicts() == {}


def test_user_metadata_changed_within_a_second_is_seen(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 tells times in whole seconds; same bytes with other words are fused anew all the same."""
    world.put(KEY, OWL)
    head, words = world.syncer.store.head, {"title": "An owl"}

    def head_with_words(key: str) -> ObjectInfo | None:
        info = head(key)
        return replace(info, user_metadata=dict(words)) if info else None

    monkeypatch.setattr(world.syncer.store, "head", head_with_words)
    world.syncer.sync(KEY)
    words["title"] = "A tawny owl"
    assert world.syncer.sync(KEY).outcome is Outcome.REFUSED
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["title"] == "A tawny owl"


def test_what_is_given_up_has_no_point_of_another_state(world: World) -> None:
    """Given up, an object keeps a point that describes it, and loses one that does not."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.syncer.give_up(KEY, Rejected(Reason.BUG, "KeyError"))
    assert world.payload(KEY) is not None
    world.put(KEY, CROW)
    world.syncer.give_up(KEY, Rejected(Reason.BUG, "KeyError"))
    assert world.payload(KEY) is None
    info = world.syncer.store.head(KEY)
    assert info is not None
    letter = world.letters.get([KEY])[KEY]
    assert (letter.reason, letter.etag) == (Reason.BUG, info.etag)


def test_a_burst_of_changes_is_heard_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of many changes is heard at once, the rest as one: what came while it waited."""
    monkeypatch.setattr(sync, "BURST_S", 5.0)
    encoded: list[object] = []
    encode = world.encoder.encode_audio
    monkeypatch.setattr(world.encoder, "encode_audio", lambda w: encoded.append(w) or encode(w))
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    assert (len(encoded), world.pauses) == (1, [])

    def wait_while_it_changes(seconds: float) -> None:
        world.pauses.append(seconds)
        world.put(KEY, SOUNDS / "animals/duck-quack.wav")
        monkeypatch.setattr(sync, "BURST_S", 0.0)  # so much time has passed

    world.put(KEY, CROW.read_bytes())
    world.wait = wait_while_it_changes
    world.syncer.sync(KEY)
    assert len(encoded) == 2
    assert 0 < world.pauses[0] < 5
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["duration_s"] == pytest.approx(0.26, abs=0.01)


class Worker:
    """A worker's threads around a world: each message is settled by one of its own."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sync, "BURST_S", 1.0)
        world.wait = time.sleep
        encode = world.encoder.encode_audio
        self.encodings: list[object] = []
        monkeypatch.setattr(
            world.encoder, "encode_audio", lambda w: self.encodings.append(w) or encode(w)
        )
        syncers, stopping = dict.fromkeys(Lane, world.syncer), threading.Event()
        self._policy = RetryPolicy(syncers, self, stopping)  # type: ignore[arg-type]
        self._pool = ThreadPoolExecutor(32)
        self._settled: list[Future[bool]] = []

    def sync(self, key: str, _: Lane = Lane.LIVE, __: float | None = None) -> None:
        """Hand over a message, as a dispatcher does."""
        self._settled.append(self._pool.submit(self._policy.settle, key, Lane.LIVE))

    def settled(self) -> bool:
        """Wait for all messages, and those they led to; tell whether all may be acknowledged."""
        return all(each.result(20) for each in self._settled)  # a list may grow meanwhile


def test_ten_changes_within_a_second_are_heard_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a burst the first state is heard at once and the last soon after; all is settled."""
    worker = Worker(world, monkeypatch)
    world.put(KEY, OWL)
    started = time.monotonic()
    worker.sync(KEY)
    while world.payload(KEY) is None:
        time.sleep(0.01)
    assert time.monotonic() - started < 0.8  # a first upload waits for nothing
    for number in range(10):
        source = CROW if number % 2 else OWL
        world.put(KEY, SOUNDS / "animals/duck-quack.wav" if number == 9 else source)
        worker.sync(KEY)
        time.sleep(0.05)
    assert worker.settled()
    assert len(worker.encodings) == 2
    payload = world.payload(KEY)
    assert payload is not None
    assert payload["duration_s"] == pytest.approx(0.26, abs=0.01)


def test_sound_and_sidecar_uploaded_together_are_heard_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However their messages and uploads interleave, the sound is heard once, and with words."""
    worker = Worker(world, monkeypatch)
    for number in range(10):
        key, sidecar = f"{number}.wav", f"{number}.json"
        first, second = (key, sidecar) if number % 2 else (sidecar, key)
        for each in (first, second):
            world.put(each, OWL if each == key else b'{"title": "An owl"}')
            worker.sync(each)
    assert worker.settled()
    assert len(worker.encodings) == 10
    payloads = [world.payload(f"{number}.wav") for number in range(10)]
    assert [payload["title"] for payload in payloads if payload] == ["An owl"] * 10


def test_a_stopping_worker_waits_for_no_burst(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop, it gives up waiting for the end of a burst, and with that the message."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY, CROW)
    monkeypatch.setattr(sync, "BURST_S", 5.0)
    world.wait = lambda _: True
    with pytest.raises(Unavailable, match="stops"):
        world.syncer.sync(KEY)


def test_other_words_do_not_wait_for_the_end_of_a_burst(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar that comes just after its sound is fused at once: that costs next to nothing."""
    monkeypatch.setattr(sync, "BURST_S", 5.0)
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY + ".json", b'{"title": "An owl"}')
    assert world.syncer.sync(KEY).outcome is Outcome.REFUSED
    assert world.pauses == []


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
def unreadable(world: World) -> Unreadable:
    """Return the world's bucket, which may keep objects from us."""
    store = Unreadable(world.root)
    limits = Limits(duration_s=60, object_bytes=10_000_000)
    index = IndexSide(world.index, world.generation, world.letters)
    world.syncer = Syncer(BucketSide(store, limits), index, world.encoder)
    return store


@pytest.mark.parametrize("headers_too", [False, True])
def test_an_object_that_is_kept_from_us_has_a_letter_until_it_is_not(
    world: World,
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
    world: World, unreadable: Unreadable
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


def test_vectors_are_fetched_only_to_fuse_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_a_decoding_that_a_stop_ends_changes_nothing(world: World) -> None:
    """A pool of decoders that closes is no verdict: the point stays, and there is no letter."""
    world.put(KEY, OWL)
    world.syncer.sync(KEY)
    world.put(KEY, CROW)

    @contextmanager
    def closing(_: Path, __: float) -> Iterator[OpenSound]:
        raise Unavailable("the worker stops")
        yield

    limits = Limits(duration_s=60, object_bytes=10_000_000)
    bucket = BucketSide(FolderStore(world.root), limits, closing)
    index = IndexSide(world.index, world.generation, world.letters)
    with pytest.raises(Unavailable, match="stops"):
        Syncer(bucket, index, world.encoder).sync(KEY)
    assert world.payload(KEY) is not None
    assert world.verdicts() == {}
