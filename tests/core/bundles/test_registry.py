"""The registry: bundles that never change, and a document that two writers cannot both write."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import saved_bundle
from typer.testing import CliRunner

from audiofuse.core.bundles.bundle import load_bundle
from audiofuse.core.bundles.document import Phase, Rollout
from audiofuse.core.bundles.loading import load_version
from audiofuse.core.bundles.registry import Registry, Watch, open_registry
from audiofuse.core.encoder.encoder import Encoder
from audiofuse.core.errors import BundleError, ConfigurationError, ObjectChanged, Unavailable
from audiofuse.core.settings import Settings
from audiofuse.core.storage.files import S3Files
from audiofuse.core.storage.s3 import S3Bucket
from audiofuse.trainer.cli import cli

BY = "me@here"


@pytest.fixture
def bundle(tiny_encoder: Encoder, tmp_path: Path) -> Path:
    """Return a bundle that lies somewhere."""
    return saved_bundle(tiny_encoder, tmp_path / "made", "tiny", "# A card\n")


@pytest.fixture(params=["folder", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Return settings of each kind of registry."""
    if request.param == "folder":
        return Settings(registry=str(tmp_path / "registry"))
    aws: Settings = request.getfixturevalue("aws_settings")
    return aws.model_copy(
        update={"registry": f"{aws.bucket}/some/encoders", "home": tmp_path / "h"}
    )


@pytest.fixture
def registry(settings: Settings) -> Registry:
    """Return an empty registry."""
    return open_registry(settings)


def test_a_published_bundle_comes_back_as_it_was(registry: Registry, bundle: Path) -> None:
    """What is fetched verifies and is the same encoder; its version is listed, once more or not."""
    assert registry.versions() == []
    for _ in range(2):
        assert registry.publish(bundle) == bundle.name
    assert registry.versions() == [bundle.name]
    assert registry.has(bundle.name)
    shutil.rmtree(bundle)
    assert load_bundle(registry.fetch(bundle.name)).config.dim > 0


def test_what_is_not_published_is_refused(registry: Registry) -> None:
    """A version that nobody published, and a name that is none, are errors that say so."""
    assert not registry.has("tiny-000000")
    with pytest.raises(ConfigurationError, match=r"no encoder tiny-000000 is published"):
        registry.fetch("tiny-000000")
    with pytest.raises(ConfigurationError, match="is no encoder version"):
        registry.fetch("../elsewhere")


def test_a_version_exists_once_its_manifest_does(registry: Registry, bundle: Path) -> None:
    """A publishing that was cut off leaves no version, and publishing again completes it."""
    registry._files.upload(bundle / "config.json", f"{bundle.name}/config.json")
    assert registry.versions() == []
    registry.publish(bundle)
    assert registry.fetch(bundle.name).name == bundle.name


def test_other_content_under_a_version_is_refused(registry: Registry, bundle: Path) -> None:
    """A version is never changed: whoever has another bundle of its name is told."""
    registry._files.put(f"{bundle.name}/manifest.json", b"{}", None)
    with pytest.raises(ConfigurationError, match="another bundle named"):
        registry.publish(bundle)


def test_a_damaged_upload_is_never_published(
    registry: Registry, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What arrived is read back; if it differs there is no version."""
    upload = registry._files.upload

    def spoil(path: Path, name: str) -> None:
        damaged = bundle.parent / "damaged"
        damaged.write_bytes(path.read_bytes()[:-1] + b"?")
        upload(damaged, name)

    monkeypatch.setattr(registry._files, "upload", spoil)
    with pytest.raises(BundleError, match="differs from its manifest"):
        registry.publish(bundle)
    assert registry.versions() == []


def test_a_damaged_bundle_is_not_handed_out(registry: Registry, bundle: Path) -> None:
    """Whole or not at all: a bundle whose file is damaged in the registry is an error."""
    registry.publish(bundle)
    damaged = bundle / "README.md"
    damaged.write_text("other")
    registry._files.upload(damaged, f"{bundle.name}/README.md")
    with pytest.raises(BundleError, match=r"README.md differs"):
        registry.fetch(bundle.name)


def test_a_damaged_cache_is_filled_again(aws_settings: Settings, bundle: Path) -> None:
    """What a crash left in the cache is replaced; a whole bundle there needs no registry."""
    settings = aws_settings.model_copy(update={"registry": f"{aws_settings.bucket}/encoders"})
    open_registry(settings).publish(bundle)
    folder = open_registry(settings).fetch(bundle.name)
    (folder / "config.json").write_text("")
    assert load_bundle(open_registry(settings).fetch(bundle.name))
    assert [path.name for path in folder.parent.iterdir()] == [bundle.name]
    away = settings.model_copy(update={"s3_endpoint_url": "http://127.0.0.1:9"})
    assert open_registry(away).fetch(bundle.name) == folder
    with pytest.raises(Unavailable):
        open_registry(away).rollout()


def test_a_store_that_ignores_conditions_is_refused(
    aws_settings: Settings, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An S3 server on which two writers could both win is found out when something is published."""
    bucket = S3Bucket(aws_settings.bucket.removeprefix("s3://"), aws_settings)
    put = bucket.client.put_object

    def put_always(IfNoneMatch: str = "", **rest: object) -> object:  # noqa: N803 - boto3's name
        del IfNoneMatch
        return put(**rest)

    monkeypatch.setattr(bucket.client, "put_object", put_always)
    files = S3Files(bucket, "encoders")
    with pytest.raises(ConfigurationError, match="ignores conditional writes"):
        Registry(files, "here", bundle.parent, "rollout.json").publish(bundle)


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_the_document_is_written_by_one_of_many(
    kind: str, tmp_path: Path, s3_on: Callable[[str], Settings]
) -> None:
    """Of eight that read the same document and write it at once, one succeeds, every time."""
    settings = Settings(registry=str(tmp_path / "registry"))
    if kind == "s3":
        weed = s3_on("seaweedfs")
        settings = weed.model_copy(update={"registry": weed.bucket})
    registry = open_registry(settings)
    for _ in range(10):
        _, tag = registry.rollout()
        won: list[str] = []

        def write(name: str, tag: str | None = tag, won: list[str] = won) -> None:
            try:
                registry.write(Rollout(live=name), tag)
            except ObjectChanged:
                return
            won.append(name)

        _at_once([lambda name=f"v-{number}": write(name) for number in range(8)])
        assert len(won) == 1
        rollout, _ = registry.rollout()
        assert rollout
        assert rollout.live == won[0]
        registry.write(Rollout(live="next"), registry.rollout()[1])


def _at_once(jobs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_write_whose_answer_was_lost_has_succeeded(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a repeated request finds its own content there it has won, not lost."""
    put = registry._files.put

    def put_twice(name: str, content: bytes, tag: str | None) -> None:
        put(name, content, tag)
        put(name, content, tag)

    monkeypatch.setattr(registry._files, "put", put_twice)
    registry.write(Rollout(live="v-1"), None)
    assert registry.rollout()[0] == Rollout(live="v-1")


def test_a_document_that_is_none_is_named(registry: Registry) -> None:
    """A document that cannot be read is a configuration error, not a fresh start."""
    registry._files.put("rollout-audiofuse.json", b"{", None)
    with pytest.raises(ConfigurationError, match=r"rollout-audiofuse\.json"):
        registry.rollout()


def test_indexes_that_share_a_registry_have_rollouts_of_their_own(settings: Settings) -> None:
    """The document belongs to one index: a rollout in staging is none in production."""
    open_registry(settings).write(Rollout(live="v-1"), None)
    staging = settings.model_copy(update={"index_name": "staging"})
    assert open_registry(staging).rollout() == (None, None)


def test_an_encoder_is_loaded_by_version(
    settings: Settings, registry: Registry, bundle: Path
) -> None:
    """AUDIOFUSE_ENCODER serves if it is that version, else the registry; else both are named."""
    own = settings.model_copy(update={"encoder": bundle})
    load_version(own, bundle.name)
    with pytest.raises(ConfigurationError, match=r"late-000000.*published"):
        load_version(own, "late-000000")
    registry.publish(bundle)
    load_version(settings, bundle.name)


def test_a_step_leads_to_the_next_phase_only() -> None:
    """Each step is possible in its phases, and elsewhere refused with what is to be done first."""
    steps = {
        "start": lambda r: r.start("v-3", BY),
        "pause": lambda r: r.pause(BY),
        "resume": lambda r: r.resume(BY),
        "promote": lambda r: r.promote(BY),
        "rollback": lambda r: r.rollback(BY),
        "abort": lambda r: r.abort(BY),
        "drop": lambda r: r.drop(BY),
    }
    none = Rollout(live="v-1")
    building = none.start("v-2", BY)
    paused, promoted = building.pause(BY), building.promote(BY)
    back = promoted.rollback(BY)
    possible = {
        none: {"start"},
        building: {"pause", "promote", "abort"},
        paused: {"resume", "promote", "abort"},
        promoted: {"rollback", "drop"},
        back: {"promote", "abort"},
    }
    for rollout, names in possible.items():
        for name, step in steps.items():
            if name in names:
                assert step(rollout).history[-1].by == BY
            else:
                with pytest.raises(ConfigurationError):
                    step(rollout)


def test_live_and_other_change_places_and_a_dropped_name_is_never_used_again() -> None:
    """Promote and rollback swap, drop and abort forget, and start refuses what was dropped."""
    building = Rollout(live="v-1").start("v-2", BY)
    assert building.versions == ("v-1", "v-2")
    promoted = building.promote(BY, forced=("quality",))
    assert (promoted.versions, promoted.phase) == (("v-2", "v-1"), Phase.PROMOTED)
    assert [(each.gate, each.by) for each in promoted.overrides] == [("quality", BY)]
    assert promoted.rollback(BY).versions == ("v-1", "v-2")
    assert building.abort(BY).versions == ("v-1",)
    dropped = promoted.drop(BY)
    assert (dropped.versions, dropped.dropped) == (("v-2",), ("v-1",))
    with pytest.raises(ConfigurationError, match="another name"):
        dropped.start("v-1", BY)
    assert dropped.start("v-3", BY).overrides == ()


def test_the_history_is_bounded() -> None:
    """Only the last steps are kept, however long a deployment lives."""
    rollout = Rollout(live="v-0").start("v-1", BY)
    for _ in range(60):
        rollout = rollout.pause(BY).resume(BY)
    assert len(rollout.history) == 50
    assert rollout.history[-1].what == "resume"


def test_the_command_publishes_and_renames(bundle: Path, tmp_path: Path) -> None:
    """``publish`` prints the version; under another name the same encoder is another version."""
    place = str(tmp_path / "registry")
    command = ["publish", str(bundle), "--registry", place]
    runs = [CliRunner().invoke(cli, [*command, *more]) for more in ([], ["--name", "again"])]
    versions = [run.output.strip() for run in runs]
    registry = open_registry(Settings(registry=place))
    assert registry.versions() == sorted(versions)
    assert versions[0] == bundle.name
    assert versions[1].startswith("again-")
    weights = [(registry.fetch(each) / "model.safetensors").read_bytes() for each in versions]
    assert weights[0] == weights[1]


class Away(Registry):
    """A registry whose document can be made unreadable, or made to vanish."""

    found: tuple[Rollout | None, str | None] | None = None

    def __init__(self) -> None:
        """Begin without a document."""
        self.place = "the registry"

    def rollout(self) -> tuple[Rollout | None, str | None]:
        """Return what the test says, or be away."""
        if self.found is None:
            raise Unavailable("away")
        return self.found


def test_a_watch_tells_what_it_last_read_and_when() -> None:
    """While the registry is away the document is as it was, and known to be so old."""
    registry = Away()
    watch = Watch(registry)
    with pytest.raises(Unavailable, match="away"):
        watch.look()
    registry.found = None, None
    assert watch.look() is None
    registry.found = Rollout(live="v-1"), "tag-1"
    assert watch.look() == Rollout(live="v-1")
    read_at = watch.read_at
    registry.found = None
    assert watch.look() == Rollout(live="v-1")
    assert (watch.tag, watch.read_at) == ("tag-1", read_at)


def test_a_document_that_vanished_is_one_that_cannot_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not taken for "as before" without a word: it counts as unread, and is reported once."""
    registry = Away()
    registry.found = Rollout(live="v-1"), "tag-1"
    watch = Watch(registry)
    watch.look()
    read_at = watch.read_at
    registry.found = None, None
    for _ in range(3):
        assert watch.look() == Rollout(live="v-1")
    assert (watch.tag, watch.read_at) == ("tag-1", read_at)
    assert caplog.text.count("it has vanished") == 1
    registry.found = Rollout(live="v-2"), "tag-2"
    assert watch.look() == Rollout(live="v-2")
    assert watch.read_at > read_at
