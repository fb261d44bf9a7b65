"""``audiofuse-train improve``: what is better is published, whatever is killed in between."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from audiofuse.core.bundles.bundle import load_bundle, save_bundle
from audiofuse.core.bundles.document import Phase, Rollout
from audiofuse.core.bundles.registry import Registry, open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.evaluation.scorecards import MAP, Score, Scorecards, open_scorecards
from audiofuse.core.evaluation.scorecards import Figure as Interval
from audiofuse.core.settings import Settings
from audiofuse.trainer import improving
from audiofuse.trainer.cli import main
from audiofuse.trainer.improvement.archive import Archive
from audiofuse.trainer.improvement.improve import Outcome
from audiofuse.trainer.improvement.judging import ASKED, Figure, Judgement
from audiofuse.trainer.improvement.scores import Scores

FIGURES = {ASKED: {"hybrid": Figure(40, 40, 0.5, 0.6, 0.05, 0.15)}}

OLD, NEW = (
    Score(asked="questions", data="d", queries=40, sounds=100, figures={
        "hybrid": {MAP: Interval(value=value, low=0.1, high=0.9)}
    })
    for value in (0.5, 0.6)
)  # fmt: skip


class Done(NamedTuple):
    """How the command ended, and what it said."""

    code: object
    stdout: str
    stderr: str


Train = Callable[..., Done]


@pytest.fixture(scope="module")
def bundles(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return two bundles by name: of the live encoder, and of an improved one, made once."""
    folder = tmp_path_factory.mktemp("made")
    return {name: save_bundle(tiny_encoder, folder, name, "") for name in ("tiny", "improved")}


@pytest.fixture
def registry(bundles: dict[str, Path]) -> Registry:
    """Return the registry of a deployment whose encoder is published."""
    registry = open_registry(Settings())
    registry.publish(bundles["tiny"])
    return registry


@pytest.fixture
def train(
    registry: Registry,
    bundles: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Train:
    """Return the command, run in this process, on an archive that is better by this judgement."""
    (live,) = registry.versions()
    monkeypatch.setattr(improving, "save_bundle", lambda *_: bundles["improved"])
    archive = Archive(live, [], {"a dog": {0: True}})
    monkeypatch.setattr(improving, "read_archive", lambda _settings, _most: archive)

    def run(*options: str, refusals: tuple[str, ...] = ()) -> Done:
        def improved(encoder: Encoder, *_: object) -> Outcome:
            judgement = Judgement(FIGURES, refusals)
            return Outcome(encoder, judgement, doubt=0.0005, scores=Scores([OLD], [NEW]))

        monkeypatch.setattr(improving, "improve_encoder", improved)
        monkeypatch.setattr(sys, "argv", ["audiofuse-train", "improve", *options])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code or 0, *capfd.readouterr())

    return run


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[str]]:
    """Return what tells which rollouts were started; the command that does so only notes it."""
    noted = tmp_path / "started"
    note = f"import sys; open({str(noted)!r}, 'a').write(sys.argv[1] + '\\n')"
    monkeypatch.setattr(improving, "START", (sys.executable, "-c", note))
    return lambda: noted.read_text().split() if noted.exists() else []


def test_what_is_better_is_published_with_its_figures(
    train: Train, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is printed; its bundle loads, its card has the table, both scorecards a score."""
    (live,) = registry.versions()
    monkeypatch.setattr(improving, "save_bundle", save_bundle)
    done = train()
    assert done.code == 0, done.stderr
    version = done.stdout.split()[-1]
    assert version.startswith("improved-")
    bundle = registry.fetch(version)
    load_bundle(bundle)
    card = (bundle / "README.md").read_text()
    assert "| listeners' questions | hybrid | 40 | 0.500 | 0.600 | +0.100 |" in card
    cards = open_scorecards(Settings())
    assert [cards.of(each).scores for each in (live, version)] == [(OLD,), (NEW,)]


def test_what_is_not_better_is_told_and_not_published(train: Train, registry: Registry) -> None:
    """Cron sees it by the exit code, people by the reason; a dry run publishes nothing either."""
    before = registry.versions()
    done = train("--rollout", refusals=("not certainly better",))
    assert done.code == improving.NOT_BETTER
    assert "nothing is published: not certainly better" in done.stderr
    assert train("--dry-run").code == 0
    assert registry.versions() == before


def test_a_rollout_is_started(train: Train, starts: Callable[[], list[str]]) -> None:
    """With --rollout the operator's own command gets the version."""
    done = train("--rollout")
    assert done.code == 0, done.stderr
    assert starts() == [done.stdout.split()[-1]]


def test_a_rollout_that_does_not_start_fails(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong was said by that command; this one says that the version is published."""
    monkeypatch.setattr(improving, "START", (sys.executable, "-c", "raise SystemExit(1)"))
    done = train("--rollout")
    assert done.code == 1
    assert "is published, but its rollout did not start" in done.stderr


@pytest.mark.parametrize("killed", ["publish", "scorecards", "_start"])
def test_the_command_that_was_killed_is_given_again(
    killed: str, train: Train, registry: Registry, starts: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Stopped while it publishes or before its rollout starts, it ends as if it had not been."""
    (live,) = registry.versions()

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if killed == "publish":  # all files are there, but the manifest, which makes it a version
            patch.setattr(Registry, "_publish_manifest", kill)
        elif killed == "scorecards":
            patch.setattr(Scorecards, "add", kill)
        else:
            patch.setattr(improving, "_start", kill)
        train("--rollout")
    assert len(registry.versions()) == (1 if killed == "publish" else 2)
    version = train("--rollout").stdout.split()[-1]
    assert len(registry.versions()) == 2
    assert starts() == [version]
    cards = open_scorecards(Settings())
    assert [cards.of(each).scores for each in (live, version)] == [(OLD,), (NEW,)]


def test_a_rollout_that_was_begun_goes_on(
    train: Train, registry: Registry, starts: Callable[[], list[str]]
) -> None:
    """Killed while it builds, nothing is learned anew; another rollout is left to its operator."""
    (live,) = registry.versions()
    building = Rollout(live=live, other="improved-123456", phase=Phase.BUILDING)
    registry.write(building, None)
    assert train("--rollout").code == 0
    assert starts() == ["improved-123456"]
    _, tag = registry.rollout()
    registry.write(building.model_copy(update={"other": "mine-123456"}), tag)
    done = train("--rollout")
    assert done.code == 1
    assert "a rollout is under way" in done.stderr
