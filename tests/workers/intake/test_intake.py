"""What every event source shares: what is handed over, coalesced, dropped, counted and logged."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import audiofuse.workers.commands.main
from audiofuse.core.errors import ConfigurationError, Unavailable
from audiofuse.core.settings import PREFIX, Settings
from audiofuse.core.storage.mounts import names_of, read_mounts
from audiofuse.core.storage.store import open_store
from audiofuse.workers.intake.build import build_intake, choose_source, choose_sources
from audiofuse.workers.intake.handover import Handover
from audiofuse.workers.queue.broker import Dispatcher
from audiofuse.workers.telemetry.names import Flaw, Source

HandedOver = Callable[[], list[str]]
ROOT = Path(__file__).parents[3]
TOKEN = SecretStr("0123456789abcdef")


def _body(*keys: str, bucket: str = "sounds", name: str = "ObjectCreated:Put") -> str:
    records = [
        {
            "eventSource": "ceph:s3",
            "eventName": name,
            "s3": {"bucket": {"name": bucket}, "object": {"key": key}},
        }
        for key in keys
    ]
    return json.dumps({"Records": records})


@pytest.fixture
def handover(dispatcher: Dispatcher) -> Handover:
    """Return a handover for the bucket ``sounds``."""
    return Handover("sounds", dispatcher, Source.SQS)


def test_keys_are_handed_over_in_their_order(handover: Handover, handed_over: HandedOver) -> None:
    """Sounds and sidecars of one or many messages reach the live lane; other objects do not."""
    handover.hand_over([_body("b.wav", "notes.txt"), _body("a.wav.json", "c.json")])
    assert handed_over() == ["b.wav", "a.wav", "c.json"]
    assert not handover.dropped


def test_the_same_key_is_handed_over_once_in_a_batch(
    handover: Handover, handed_over: HandedOver
) -> None:
    """Two events for one multipart upload, and a sound with its sidecar, are one look."""
    put, completed = _body("long.wav"), _body("long.wav", name="ObjectCreated:CompleteMultipart")
    handover.hand_over([put, completed, _body("long.wav.json", "other.wav", "long.wav")])
    assert handed_over() == ["long.wav", "other.wav"]
    handover.hand_over([put])
    assert handed_over() == ["long.wav", "other.wav", "long.wav"]


def test_events_that_change_no_sound_are_not_handed_over(
    handover: Handover, handed_over: HandedOver
) -> None:
    """A tag put, or the worker's own reading, costs no work and counts as no error."""
    handover.hand_over(
        [
            _body("a.wav", name="s3:ObjectCreated:PutTagging"),
            _body("a.wav", name="s3:ObjectAccessed:Head"),
        ]
    )
    assert handed_over() == []
    assert not handover.dropped


def test_what_is_dropped_is_counted_by_its_flaw(
    handover: Handover, handed_over: HandedOver
) -> None:
    """Foreign, malformed and hostile events go, each under its name; the rest is handed over."""
    handover.hand_over(
        [_body("a.wav", bucket="other"), "{", b"\xff", _body("\0.wav", "../x.wav", "good.wav")]
    )
    assert handed_over() == ["good.wav"]
    assert handover.dropped == {Flaw.FOREIGN_BUCKET: 1, Flaw.MALFORMED: 2, Flaw.BAD_KEY: 2}


def test_a_flaw_is_logged_now_and_then(
    handover: Handover, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand malformed messages are one line; the next, a minute later, tells how many."""
    caplog.set_level(logging.WARNING, "audiofuse")
    handover.hand_over(["{"] * 1000)
    handover.hand_over([_body("a.wav", bucket="other")])
    assert ["malformed" in line for line in caplog.messages] == [True, False]
    monkeypatch.setattr("audiofuse.workers.intake.handover.LOG_PAUSE_S", 0)
    handover._quiet_until.clear()
    handover.hand_over(["{"])
    assert "1001" in caplog.messages[-1]


def test_without_a_broker_nothing_counts_as_handed_over(nobody: Dispatcher) -> None:
    """The source is told, so that it lets go of nothing; a message without events needs none."""
    handover = Handover("sounds", nobody, Source.SQS)
    handover.hand_over(["{", _body("notes.txt")])
    with pytest.raises(Unavailable):
        handover.hand_over([_body("a.wav")])


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        (Source.SQS, "AUDIOFUSE_SQS_QUEUE_URL"),
        (Source.REDIS, "AUDIOFUSE_REDIS_EVENTS_KEY"),
        (Source.WEBHOOK, "AUDIOFUSE_WEBHOOK_TOKEN"),
        (Source.FOLDER, "AUDIOFUSE_BUCKET"),
    ],
)
def test_a_source_names_the_setting_that_it_misses(source: Source, missing: str) -> None:
    """An intake whose settings are incomplete does not start, and says what to set."""
    with pytest.raises(ConfigurationError, match=missing):
        build_intake(Settings(bucket="s3://sounds"), source)


@pytest.mark.parametrize(
    ("values", "source"),
    [
        ({}, Source.SQS),
        ({"sqs_queue_url": "http://queue", "webhook_token": TOKEN}, Source.SQS),
        ({"redis_events_key": "events"}, Source.REDIS),
        ({"webhook_token": TOKEN}, Source.WEBHOOK),
    ],
)
def test_the_local_deployment_takes_the_source_that_is_set_up(
    values: dict[str, Any], source: Source, tmp_path: Path
) -> None:
    """For a bucket ``audiofuse up`` runs the intake that is set up; a folder is watched."""
    settings = Settings(bucket="s3://sounds", **values)
    assert choose_source(settings, open_store(settings)) is source
    folder = settings.model_copy(update={"bucket": str(tmp_path)})
    assert choose_source(folder, open_store(folder)) is Source.FOLDER


def test_of_several_buckets_each_source_is_taken_once(tmp_path: Path) -> None:
    """One intake takes the events of all buckets on S3, one watches all folders."""
    addresses = {"a": str(tmp_path), "b": "s3://b", "c": str(tmp_path), "d": "s3://d", "e": None}
    mounts = [{"name": name, "address": address} for name, address in addresses.items()]
    settings = Settings(bucket="", buckets=SecretStr(json.dumps(mounts)))
    assert choose_sources(settings, open_store(settings)) == [Source.FOLDER, Source.SQS]


def test_help_and_page_name_settings_that_exist() -> None:
    """Every setting that ``intake --help`` and the page about connecting a bucket name is one."""
    page = (ROOT / "deploy" / "connect.md").read_text()
    for text in (page, audiofuse.workers.commands.main.intake.__doc__ or ""):
        named = set(re.findall(rf"{PREFIX}(\w+)", text))
        assert len(named) > 5
        assert {name.lower() for name in named} <= Settings.model_fields.keys()
    assert all(
        f"{source}:" in (audiofuse.workers.commands.main.intake.__doc__ or "") for source in Source
    )
    assert all(f"audiofuse intake {source}" in page for source in Source)


def test_a_short_token_is_refused() -> None:
    """A token that could be guessed is no token."""
    with pytest.raises(ValueError, match="webhook_token"):
        Settings(webhook_token=SecretStr("short"))


def test_events_of_several_buckets_are_handed_over_under_their_names(
    dispatcher: Dispatcher, handed_over: HandedOver
) -> None:
    """Each bucket's own, sidecars as their sounds; what is of none is dropped and counted."""
    mounts = SecretStr(
        json.dumps(
            [
                {"name": "field", "address": "s3://b/2026/"},
                {"name": "studio", "address": "s3://sounds"},
            ]
        )
    )
    names = names_of(read_mounts(Settings(buckets=mounts)))
    handover = Handover("", dispatcher, Source.SQS, names)
    foreign = [_body("2025/a.wav", bucket="b"), _body("2026/a.wav", bucket="field")]
    handover.hand_over([_body("2026/a.wav.json", bucket="b"), _body("a.wav"), *foreign])
    assert handed_over() == ["field/2026/a.wav", "studio/a.wav"]
    assert handover.dropped == {Flaw.FOREIGN_BUCKET: 2}
