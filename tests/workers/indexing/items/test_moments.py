"""A recording's moments are just those of its present state, whatever happens while it is heard."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from local_encoder import LocalEncoder
from made_sounds import float_wav, noise, tone

from audiofuse.core.encoder.embeddings import unit
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import Reason, Rejected, Unavailable
from audiofuse.core.index.index import FILTERED
from audiofuse.core.items import moment_id, point_id
from audiofuse.core.model.config import TINY, Grid
from audiofuse.core.moments.hearing import hear
from audiofuse.core.query import Question
from audiofuse.core.search.loaded import LoadedEncoders
from audiofuse.core.search.search import Searcher
from audiofuse.core.storage.store import FolderStore
from audiofuse.workers.indexing.items.collaborators import BucketSide, IndexSide, Limits
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.telemetry.names import Outcome

KEY = "field/forest.wav"
WORDS = b'{"title": "a forest", "keywords": ["birds"], "labels": ["Bird"]}'
LIMITS = Limits(duration_s=600, object_bytes=100_000_000)


def recording(seconds: float) -> bytes:
    """Return a WAV file of noise."""
    return float_wav(noise(seconds))


def syncer(world: Any, encoder: Any = None, **side: Any) -> Syncer:
    """Return another worker of a world."""
    options = {"grid": Grid()} | side
    return Syncer(
        BucketSide(FolderStore(world.root), LIMITS),
        IndexSide(world.index, world.generation, world.letters, **options),
        encoder or LocalEncoder(world.encoder),
    )


def whole(world: Any, count: int) -> bool:
    """Whether the item names so many moments, and has these and no others."""
    payload = world.payload(KEY)
    numbers = list(range(count))
    return payload["moments"] == count and world.shown(KEY) == numbers == sorted(world.moments(KEY))


def test_a_recording_has_moments_beside_its_item(world: Any) -> None:
    """Each is its window fused with the words, with all that a question may ask of its item."""
    content = recording(42)
    world.put(KEY, content)
    world.put("field/forest.json", WORDS)
    world.syncer.sync(KEY)
    payload = world.payload(KEY)
    assert whole(world, 8)
    heard = hear(
        world.encoder, np.split(noise(42), range(320_000, 42 * 32_000, 320_000)),
        "a forest birds Bird", Grid(),
    )  # fmt: skip
    item = str(point_id(world.root.name, KEY))
    ids = [moment_id(item, number) for number in range(8)]
    found = world.index.get(world.generation.moments, ids, vectors=True)
    for id_, (start_s, end_s), vector in zip(ids, heard.spans, heard.vectors, strict=True):
        moment = found[id_].payload
        assert (moment["start_s"], moment["end_s"]) == (start_s, end_s)
        assert {name: moment[name] for name in FILTERED} == {n: payload[n] for n in FILTERED}
        np.testing.assert_allclose(found[id_].item, vector, atol=1e-3)


@pytest.mark.parametrize("seconds", [1, 7.4])
def test_a_short_sound_costs_no_request_more(
    world: Any, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Created, unchanged, described anew: nothing is asked of the moments."""
    for name in ("count_moments", "seal_moments", "remove_moments"):
        monkeypatch.setattr(world.index, name, None)
    world.put(KEY, recording(seconds))
    outcomes = [world.syncer.sync(KEY).outcome, world.syncer.sync(KEY).outcome]
    world.put("field/forest.json", WORDS)
    outcomes.append(world.syncer.sync(KEY).outcome)
    assert outcomes == [Outcome.CREATED, Outcome.UNCHANGED, Outcome.REFUSED]
    assert world.payload(KEY)["moments"] == 0


def test_other_words_are_fused_without_hearing_anew(world: Any) -> None:
    """Each moment is what hearing it with the new words would give."""
    world.put(KEY, recording(58))
    world.syncer.sync(KEY)
    deaf = LocalEncoder(world.encoder)
    deaf.encode = None  # type: ignore[assignment, method-assign]
    world.put("field/forest.json", WORDS)
    assert syncer(world, deaf).sync(KEY).outcome is Outcome.REFUSED
    assert whole(world, 12)
    item = str(point_id(world.root.name, KEY))
    last = world.index.get(world.generation.moments, [moment_id(item, 11)], vectors=True)
    moment = next(iter(last.values()))
    fused = deaf.fuse_windows("", np.array([moment.audio], np.float32), "a forest birds Bird")
    np.testing.assert_allclose(moment.item, fused.vectors[0], atol=1e-5)
    assert (moment.payload["has_text"], moment.payload["end_s"]) == ("yes", 58)


@pytest.mark.parametrize("seconds", [12, 3])
def test_a_shortened_recording_leaves_no_moment_behind(world: Any, seconds: float) -> None:
    """Those beyond its new end go, all of them if it has none any more."""
    world.put(KEY, recording(60))
    world.syncer.sync(KEY)
    world.put(KEY, recording(seconds))
    world.syncer.sync(KEY)
    assert whole(world, Grid().count(seconds))


def test_a_deleted_recording_leaves_nothing_behind(world: Any) -> None:
    """Its item goes, and all moments with it."""
    world.put(KEY, recording(30))
    world.syncer.sync(KEY)
    (world.root / KEY).unlink()
    assert world.syncer.sync(KEY).outcome is Outcome.REMOVED
    assert not world.moments(KEY)


def test_a_recording_cut_off_in_its_middle_has_neither_item_nor_moments(world: Any) -> None:
    """What was written while it was heard goes once it proves damaged; so does what was before."""
    world.put(KEY, recording(60)[:-2_000_000])
    with pytest.raises(Rejected) as rejected:
        world.syncer.sync(KEY)
    assert rejected.value.reason is Reason.DAMAGED
    assert (world.payload(KEY), world.moments(KEY)) == (None, {})
    world.put(KEY, recording(20))
    world.syncer.sync(KEY)
    world.put(KEY, recording(60)[:-2_000_000])
    with pytest.raises(Rejected):
        world.syncer.sync(KEY)
    assert (world.payload(KEY), world.moments(KEY)) == (None, {})


def _after_writes(
    world: Any, monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]
) -> None:
    """Let ``act`` happen before the moments' portion ``number`` is written."""
    upsert, counted = world.index.upsert, []

    def counting(generation: Any, points: Any) -> None:
        if generation == world.generation.moments:
            counted.append(1)
            if len(counted) == number:
                act()
        upsert(generation, points)

    monkeypatch.setattr(world.index, "upsert", counting)


def test_nothing_is_shown_of_a_recording_that_is_being_heard(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies on the way leaves drafts that no item names; the next makes all whole."""
    world.put(KEY, recording(60))

    def dies() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        _after_writes(world, dying, 3, dies)
        with pytest.raises(KeyboardInterrupt):
            world.syncer.sync(KEY)
    assert world.payload(KEY) is None
    assert len(world.moments(KEY)) == 8
    assert all(state.endswith("~") for state in world.moments(KEY).values())
    assert world.syncer.sync(KEY).outcome is Outcome.CREATED
    assert whole(world, 12)


@pytest.mark.parametrize("seconds", [45, 20, 3])
def test_a_recording_replaced_while_it_is_heard_ends_as_it_is(
    world: Any, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Another worker has settled the change by then, and this one writes over its moments."""
    world.put(KEY, recording(60))

    def replace() -> None:
        world.put(KEY, recording(seconds))
        syncer(world).sync(KEY)

    _after_writes(world, monkeypatch, 2, replace)
    world.syncer.sync(KEY)
    assert whole(world, Grid().count(seconds))


def test_a_replaced_recording_is_not_heard_to_its_end(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each portion it is looked whether it is still the same."""
    world.put(KEY, recording(60))
    _after_writes(world, monkeypatch, 1, lambda: world.put(KEY, recording(3)))
    starts: list[float] = []
    take = LocalEncoder._hand_over

    def counted(self: LocalEncoder, cutting: Any, first: int, *rest: Any) -> int:
        starts.append(first)
        return take(self, cutting, first, *rest)

    monkeypatch.setattr(LocalEncoder, "_hand_over", counted)
    world.syncer.sync(KEY)
    assert starts == [0, 4]
    assert whole(world, 0)


def test_lost_or_spoilt_moments_are_written_again(world: Any) -> None:
    """A sync counts: of an item that is as it should be, moments may be missing, or too many."""
    world.put(KEY, recording(30))
    world.syncer.sync(KEY)
    item = str(point_id(world.root.name, KEY))
    assert world.syncer.sync(KEY).outcome is Outcome.UNCHANGED
    world.index.remove(world.generation.moments, [moment_id(item, 2)])
    world.syncer.sync(KEY)
    assert whole(world, 6)
    moments = world.index.get(world.generation.moments, [moment_id(item, 5)], vectors=True).values()
    for moment in moments:
        state = {"state": "another", "number": 6}
        left = type(moment)(
            moment_id(item, 6), {**moment.payload, **state}, moment.item, moment.audio
        )
        world.index.upsert(world.generation.moments, [left])
    world.syncer.sync(KEY)
    assert whole(world, 6)


def test_moments_left_beside_a_short_sound_go_when_it_is_repaired(world: Any) -> None:
    """The lane by which reconcile repairs looks after them."""
    world.put(KEY, recording(30))
    world.syncer.sync(KEY)
    item = str(point_id(world.root.name, KEY))
    kept = world.index.get(world.generation.moments, [moment_id(item, 2)], vectors=True)
    world.put(KEY, recording(3))
    world.syncer.sync(KEY)
    world.index.upsert(world.generation.moments, kept.values())
    assert world.syncer.sync(KEY).outcome is Outcome.UNCHANGED
    assert not world.shown(KEY)
    syncer(world, thorough=True).sync(KEY)
    assert whole(world, 0)


def test_a_generation_of_before_gets_its_moments(world: Any) -> None:
    """An item that names none is heard once more; a short one stays as it is."""
    world.put(KEY, recording(30))
    world.put("short.wav", recording(2))
    before = syncer(world, grid=None)
    before.sync(KEY)
    before.sync("short.wav")
    assert whole(world, 0)
    world.syncer.sync(KEY)
    assert whole(world, 6)
    assert world.syncer.sync("short.wav").outcome is Outcome.UNCHANGED


def test_other_windows_and_none_at_all(world: Any) -> None:
    """Where a setting says so, a recording is cut anew, or its moments go without hearing it."""
    world.put(KEY, recording(60))
    world.syncer.sync(KEY)
    syncer(world, grid=Grid(20, 20)).sync(KEY)
    assert whole(world, 3)
    deaf = LocalEncoder(world.encoder)
    deaf.encode = None  # type: ignore[assignment, method-assign]
    syncer(world, deaf, grid=None).sync(KEY)
    assert whole(world, 0)


def test_moments_of_another_generation_with_the_same_ears_are_taken_over(world: Any) -> None:
    """A new text tower fuses what the live generation has stored, moments too."""
    world.put(KEY, recording(60))
    world.syncer.sync(KEY)
    live = world.generation
    world.generation = world.index.create("other-111111", world.encoder, Grid())
    deaf = LocalEncoder(world.encoder)
    deaf.encode = None  # type: ignore[assignment, method-assign]
    syncer(world, deaf, elsewhere=lambda: (world.index, live)).sync(KEY)
    assert whole(world, 12)


@pytest.mark.parametrize(("fusion", "count"), [("mid", 12), ("audio", 12), ("metadata", 0)])
def test_every_fusion_has_the_moments_it_can_have(world: Any, fusion: str, count: int) -> None:
    """Mid fusion hears a changed sidecar's recording anew; one that hears nothing has none."""
    encoder = Encoder.random(TINY.model_copy(update={"fusion": fusion}), seed=0)
    world.generation = world.index.create("other-111111", encoder, encoder.config.grid)
    world.put(KEY, recording(60))
    world.put("field/forest.json", WORDS)
    other = syncer(world, LocalEncoder(encoder), grid=encoder.config.grid)
    other.sync(KEY)
    assert whole(world, count)
    world.put("field/forest.json", b"{}" if fusion != "metadata" else WORDS + b" ")
    other.sync(KEY)
    assert whole(world, count)


def test_a_recording_given_up_has_no_moments(world: Any) -> None:
    """What a bug keeps out of the index leaves no draft there."""
    world.put(KEY, recording(30))
    world.syncer.sync(KEY)
    world.put(KEY, recording(40))
    world.syncer.give_up(KEY, Rejected(Reason.BUG, "a fault of the test"))
    assert (world.payload(KEY), world.moments(KEY)) == (None, {})


def test_an_index_that_is_away_meanwhile_is_tried_again(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails on the way fails the sync, and the next makes all whole."""
    world.put(KEY, recording(60))

    def away() -> None:
        raise Unavailable("the index is away")

    with monkeypatch.context() as failing:
        _after_writes(world, failing, 2, away)
        with pytest.raises(Unavailable):
            world.syncer.sync(KEY)
    world.syncer.sync(KEY)
    assert whole(world, 12)


def test_a_search_names_the_second_that_was_indexed(world: Any) -> None:
    """What a sync wrote a search finds: the recording's moment that is nearest to the question."""
    content = noise(60)
    content[40 * 32_000 : 45 * 32_000] = tone(5)
    world.put(KEY, float_wav(content))
    world.syncer.sync(KEY)
    searcher = Searcher(world.index, LoadedEncoders(lambda _: world.encoder))
    (hit,) = searcher.search(Question("a tone")).hits
    item = str(point_id(world.root.name, KEY))
    ids = [moment_id(item, number) for number in range(12)]
    found = world.index.get(world.generation.moments, ids, vectors=True)
    scores = np.array([found[id_].item for id_ in ids]) @ unit(
        world.encoder.encode_text(["a tone"])[0]
    )
    best = hit.moments[0]
    assert hit.key == KEY
    assert best.score == pytest.approx(scores.max(), abs=1e-4)
    assert best.start_s <= 5 * scores.argmax() < best.end_s
