"""The steps of a rollout: taken once, finished by the next command, and one atomic switch."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from typer.testing import CliRunner

from audiofuse.core.bundles.bundle import load_bundle
from audiofuse.core.bundles.document import Phase, Rollout
from audiofuse.core.bundles.registry import Registry
from audiofuse.core.errors import AudiofuseError, ConfigurationError, Unavailable
from audiofuse.core.index.index import Generation, open_index
from audiofuse.core.settings import PREFIX, Settings, environment
from audiofuse.workers.commands.rollout import rollout_cli
from audiofuse.workers.indexing.items.sync import Syncer
from audiofuse.workers.queue.dead_letters import DeadLetters
from audiofuse.workers.queue.followers import Followers
from audiofuse.workers.rollout.operator import Operator, Rollouts

Start = Callable[[str], Operator]
Make = Callable[[str], Syncer]
Reject = Callable[[DeadLetters, str, str], None]
Workers = Any  # see conftest.py


KEYS = ("owl.wav", "duck-quack.wav", "dog-bark.wav", "cowbell.flac", "door-close.mp3", "bell.opus")


def _unseen(points: int, total: int) -> None:
    del points, total


def _points(settings: Settings, version: str) -> dict[str, str]:
    index = open_index(settings)
    points = index.scroll(index.generation(version), ["key", "encoder"])
    return {point.payload["key"]: point.payload["encoder"] for point in points}


def _live(settings: Settings) -> str:
    live = open_index(settings).live()
    assert live
    return live.version


def test_a_version_is_built_promoted_rolled_back_and_the_old_one_dropped(
    start: Start, settings: Settings, versions: tuple[str, str], workers: Workers
) -> None:
    """The alias moves in single steps, both generations stay whole, and the end leaves one."""
    old, new = versions
    operator = start(new)
    assert operator.build(_unseen)
    assert _points(settings, new) == dict.fromkeys(KEYS, new)
    for step, live in ((operator.promote, new), (operator.rollback, old), (operator.promote, new)):
        assert _live(settings) != live
        step(*([()] if step == operator.promote else []))
        assert _live(settings) == live
    operator.drop()
    assert open_index(settings).generations() == [Generation(f"audiofuse-{new}", new)]
    with pytest.raises(ConfigurationError, match="another name"):
        start(old)
    steps = [each.what.split()[0] for each in Operator(settings).rollout.history]
    assert steps == ["start", "promote", "rollback", "promote", "drop"]
    assert sorted(workers.taken) == sorted(KEYS)


def test_a_killed_backfill_goes_on_where_it_was(
    start: Start, syncer_of: Make, settings: Settings, versions: tuple[str, str], workers: Workers
) -> None:
    """Whoever resumes queues only what is lacking, and what was deleted meanwhile goes."""
    _, new = versions
    operator = start(new)
    syncer = syncer_of(new)
    for key in KEYS[:4]:
        syncer.sync(key)
    Path(settings.bucket, KEYS[0]).unlink()
    del operator  # it is killed
    again = Operator(settings)
    again.resume(lambda: load_bundle(again.registry.fetch(new)))
    assert again.build(_unseen)
    assert set(workers.taken) == {KEYS[0], *KEYS[4:]}
    assert _points(settings, new).keys() == {*KEYS[1:]}


class Killed(BaseException):
    """The operator's process ends here."""


class Steps:
    """Lets an operator take so many steps to the outside, and kills it before the next."""

    def __init__(self, patch: pytest.MonkeyPatch, operator: Operator, steps: int) -> None:
        """Count what ``operator`` asks of Qdrant and writes to the registry from here on."""
        self._left = steps
        self._qdrant = operator.index._client
        patch.setattr(operator.index, "_client", self)
        patch.setattr(operator.registry, "write", self._counted(operator.registry.write))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._qdrant, name)
        return self._counted(found) if callable(found) else found

    def _counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if not self._left:
                raise Killed
            self._left -= 1
            return method(*arguments, **options)

        return counted


def test_a_start_that_is_killed_anywhere_holds_no_upload(
    settings: Settings, versions: tuple[str, str], registry: Registry, syncer_of: Make
) -> None:
    """Whichever step is its last, every version that a change is written to can take it."""
    live, new = versions
    encoder = load_bundle(registry.fetch(new))
    for steps in range(100):
        operator = Operator(settings)
        with pytest.MonkeyPatch.context() as patch:
            Steps(patch, operator, steps)
            try:
                operator.start(new, lambda: encoder)
            except Killed:
                is_killed = True
            else:
                is_killed = False
        rollout, _ = registry.rollout()
        for version in rollout.versions if rollout else (live,):
            assert syncer_of(version).sync(KEYS[0]).outcome in {"created", "unchanged"}
        if rollout:
            break
        open_index(settings).drop(Generation(f"audiofuse-{new}", new))  # begin from nothing
    assert steps > 5
    assert not is_killed or Operator(settings).rollout.other == new


def test_resume_completes_whatever_is_lacking(
    settings: Settings, versions: tuple[str, str], registry: Registry, workers: Workers
) -> None:
    """Even a collection that is gone though the document names it is made again."""
    del workers
    live, new = versions
    registry.write(Rollout(live=live).start(new, "me"), None)
    operator = Operator(settings)
    assert operator.points(new) == 0
    operator.resume(lambda: load_bundle(registry.fetch(new)))
    assert operator.build(_unseen)
    assert operator.points(new) == len(KEYS)


def test_a_switch_that_would_be_refused_changes_nothing(
    settings: Settings, versions: tuple[str, str], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the collection, or where Qdrant takes no change of aliases, all stays as it was."""
    live, new = versions
    operator = start(new)
    seen = operator.registry.rollout()

    def refuse(_: object) -> None:
        raise Unavailable("403: write operations are forbidden")

    with monkeypatch.context() as patch:
        patch.setattr(operator.index, "promote", refuse)
        with pytest.raises(Unavailable, match="forbidden"):
            operator.promote(())
    operator.index.drop(operator.index.generation(new))
    with pytest.raises(ConfigurationError, match="has no collection"):
        operator.promote(())
    assert operator.registry.rollout() == seen
    assert _live(settings) == live


def test_a_step_whose_alias_cannot_follow_says_so(
    settings: Settings, versions: tuple[str, str], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Qdrant goes away right after the decision, the next command finishes the step."""
    live, new = versions
    operator = start(new)
    promote = operator.index.promote

    def move(generation: Generation) -> None:
        if generation.version == new:
            raise Unavailable("Qdrant does not answer")
        promote(generation)

    with monkeypatch.context() as patch:
        patch.setattr(operator.index, "promote", move)
        with pytest.raises(AudiofuseError, match="the step is taken, but"):
            operator.promote(())
    assert _live(settings) == live
    assert Operator(settings).rollout.live == new
    assert _live(settings) == new


def test_steps_wait_until_all_follow(
    settings: Settings, versions: tuple[str, str], start: Start, redis: Redis
) -> None:
    """A worker that follows an older document is named, and nothing is built or deleted."""
    _, new = versions
    followers = Followers(redis, settings.index_name)
    followers.follow("worker a:1", None)
    operator = start(new)
    with pytest.raises(AudiofuseError, match="not followed by: worker a:1"):
        operator.build(_unseen)
    with pytest.raises(AudiofuseError, match="not followed by: worker a:1"):
        operator.abort()
    assert len(Operator(settings).index.generations()) == 2
    followers.follow("worker a:1", operator.registry.rollout()[1])
    assert len(Operator(settings).index.generations()) == 1


def test_pause_stops_the_backfill_wherever_it_runs(
    start: Start, settings: Settings, versions: tuple[str, str], workers: Workers
) -> None:
    """Another operator's pause or abort ends a build that runs, and resume goes on."""
    _, new = versions
    operator = start(new)

    def pause(points: int, total: int) -> None:
        del points, total
        if Operator(settings).rollout.phase is Phase.BUILDING:
            Operator(settings).pause()

    assert not operator.build(pause)
    assert Operator(settings).rollout.phase is Phase.PAUSED
    assert len(workers.taken) < len(KEYS)
    again = Operator(settings)
    again.resume(lambda: load_bundle(again.registry.fetch(new)))
    assert again.build(_unseen)
    Operator(settings).abort()
    assert not again.build(_unseen)


def test_what_is_not_published_is_not_started(
    settings: Settings, versions: tuple[str, str], registry: Registry
) -> None:
    """Neither an unknown version, nor any while the live one could not be rolled back to."""
    live, new = versions
    with pytest.raises(ConfigurationError, match="tiny-000000 is not published"):
        _start_unpublished(settings, "tiny-000000")
    shutil.rmtree(registry.fetch(live))
    with pytest.raises(ConfigurationError, match=f"{live} is not published"):
        _start_unpublished(settings, new)
    assert registry.rollout() == (None, None)


def _start_unpublished(settings: Settings, version: str) -> None:
    Operator(settings).start(version, lambda: pytest.fail("its sizes are asked for"))


def test_the_next_command_finishes_a_step_that_was_killed(
    start: Start, settings: Settings, versions: tuple[str, str], registry: Registry
) -> None:
    """If only the document says what is live, or dropped, the next command makes it so."""
    old, new = versions
    operator = start(new)
    rollout, tag = registry.rollout()
    assert rollout
    registry.write(rollout.promote("me"), tag)
    assert _live(settings) == old
    assert Operator(settings).rollout.live == new
    assert _live(settings) == new
    rollout, tag = registry.rollout()
    assert rollout
    registry.write(rollout.drop("me"), tag)
    Operator(settings)
    assert [each.version for each in operator.index.generations()] == [new]


@pytest.mark.parametrize(
    "steps", [["promote"], ["abort"], ["promote", "rollback"], ["promote", "drop"]]
)
def test_the_same_command_again_finishes_what_it_began(
    start: Start, settings: Settings, versions: tuple[str, str], monkeypatch: pytest.MonkeyPatch,
    steps: list[str],
) -> None:  # fmt: skip
    """Killed when the document alone was written, or given twice: it ends well, and all is done."""
    operator, step = start(versions[1]), steps[-1]
    rollout, tag = operator.rollout, operator.registry.rollout()[1]
    for name in steps:
        rollout = getattr(rollout, name)("me")
    operator.registry.write(rollout, tag)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        done = CliRunner().invoke(rollout_cli, [step])
        assert (done.exit_code, done.exception) == (0, None)
        assert f"done: {step}" in done.output
        assert _live(settings) == rollout.live
        left = {each.version for each in operator.index.generations()}
        assert left == set(rollout.versions)


def test_two_operators_cannot_both_win(
    start: Start, settings: Settings, versions: tuple[str, str]
) -> None:
    """A step builds on what was looked at: the second of two does nothing, and says so."""
    old, new = versions
    start(new)
    first, second = Operator(settings), Operator(settings)
    first.promote(("quality",))
    with pytest.raises(AudiofuseError, match="somebody else took a step"):
        second.abort()
    state = Operator(settings).rollout
    assert (state.live, state.other, state.phase) == (new, old, Phase.PROMOTED)
    assert [each.gate for each in state.overrides] == ["quality"]
    assert _live(settings) == new


def test_racing_operators_end_in_what_the_document_says(
    start: Start, settings: Settings, versions: tuple[str, str], registry: Registry
) -> None:
    """However steps of six operators interleave, the alias ends as the document does."""
    _, new = versions
    index = start(new).index
    steps: list[str] = []

    def go_to_and_fro() -> None:
        rollouts = Rollouts(registry, index)
        for _ in range(10):
            seen = rollouts.look()
            promoted = seen.rollout.phase is Phase.PROMOTED
            step = seen.rollout.rollback("me") if promoted else seen.rollout.promote("me")
            try:
                rollouts.take(seen, step)
            except AudiofuseError:
                continue
            steps.append(step.live)

    threads = [threading.Thread(target=go_to_and_fro) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rollout, _ = registry.rollout()
    assert rollout
    assert _live(settings) == rollout.live
    assert len(rollout.history) == 1 + len(steps)


def test_an_aborted_version_leaves_nothing(
    settings: Settings, versions: tuple[str, str], redis: Redis, start: Start, reject: Reject
) -> None:
    """Its collection goes, and what it alone rejected is forgotten, but nothing else."""
    old, new = versions
    operator = start(new)
    letters = {version: DeadLetters(redis, settings.index_name, version) for version in versions}
    etag = operator.agreement(old)._store.head(KEYS[0]).etag
    reject(letters[new], KEYS[0], etag)
    reject(letters[old], "other.wav", "1")
    operator.abort()
    assert [*letters[old].keys()] == ["other.wav"]
    assert [each.version for each in operator.index.generations()] == [old]
    assert (_live(settings), operator.rollout.phase) == (old, Phase.NONE)


def test_promote_needs_every_gate_or_a_recorded_word(
    start: Start,
    settings: Settings,
    versions: tuple[str, str],
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command prints each gate, and promotes once those that are closed are forced by name."""
    del workers
    _, new = versions
    assert start(new).build(_unseen)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(PREFIX + "SEARCH_URL", "http://127.0.0.1:9")
    run = CliRunner().invoke
    refused = run(rollout_cli, ["promote", "--force", "quality"])
    assert isinstance(refused.exception, AudiofuseError)
    assert str(refused.exception).endswith(": services")
    assert "6 agree, 0 differ" in refused.output
    assert _live(settings) != new
    assert "no such gate" not in refused.output
    assert run(rollout_cli, ["promote", "--force", "speed"]).exit_code == 2
    done = run(rollout_cli, ["promote", "--force", "quality", "--force", "services"])
    assert done.exit_code == 0, done.output
    assert _live(settings) == new
    state = json.loads(run(rollout_cli, ["status", "--json"]).output)
    assert [each["gate"] for each in state["overrides"]] == ["quality", "services"]
    assert state["points"] == dict.fromkeys(versions, len(KEYS))
    assert "FORCED" in done.output
    assert "@" in run(rollout_cli, ["status"]).output
    for command in ("rollback", "abort"):
        assert run(rollout_cli, [command]).exit_code == 0
    assert isinstance(run(rollout_cli, ["drop"]).exception, ConfigurationError)
