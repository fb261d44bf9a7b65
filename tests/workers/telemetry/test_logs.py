"""Logs: a JSON object a line that says what it is about, one line an item, and no secrets."""

import io
import json
import logging
import threading
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import SecretStr

from audiofuse.core.errors import Reason, Rejected
from audiofuse.core.settings import Settings, settings_table
from audiofuse.workers.deployment.exporter import Deployment
from audiofuse.workers.indexing.items.sync import Synced
from audiofuse.workers.indexing.retries import RetryPolicy
from audiofuse.workers.telemetry.logs import TEXT, JsonFormatter, TextFormatter, bind, bound
from audiofuse.workers.telemetry.names import Lane, Outcome


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """Return the lines that were logged as JSON, from INFO on, as they come."""
    found = _Lines()
    logger = logging.getLogger("audiofuse")
    before = logger.level
    logger.addHandler(found)
    logger.setLevel("INFO")
    yield found.lines
    logger.removeHandler(found)
    logger.setLevel(before)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line."""
        line = self.format(record)
        assert "\n" not in line
        self.lines.append(json.loads(line))


def test_a_line_says_what_it_is_about(lines: list[dict[str, Any]]) -> None:
    """What is bound is a field of each line, until it ends; so is an error with its traceback."""
    log = logging.getLogger("audiofuse.test")
    with bound(key='a \n"b".wav', lane="live"):
        bind(version="tiny-1")
        log.warning("a %s", "message")
    try:
        int("no number")
    except ValueError:
        log.exception("it failed")
    first, second = lines
    assert (first["level"], first["logger"], first["message"]) == (
        "WARNING", "audiofuse.test", "a message",
    )  # fmt: skip
    assert (first["key"], first["lane"], first["version"]) == ('a \n"b".wav', "live", "tiny-1")
    assert "key" not in second
    assert "ValueError: invalid literal" in second["error"]


class _Syncer:
    """Syncs with the outcome that the key names, and binds its version as a worker does."""

    store = letters = None

    def sync(self, key: str) -> Synced:
        """Do what the key says."""
        bind(version="tiny-1")
        if key.startswith("rejected"):
            raise Rejected(Reason.SILENT, "no sound in it")
        problem = Rejected(Reason.BAD_SIDECAR, "no JSON")
        return Synced(Outcome.CREATED, {"broken.json": problem} if "broken" in key else {})


def test_an_item_has_one_line(lines: list[dict[str, Any]]) -> None:
    """Whatever becomes of an item is told once, with its key, lane, version and outcome."""
    fates = RetryPolicy(dict.fromkeys(Lane, _Syncer()), None, threading.Event())  # type: ignore[arg-type]
    for key in ("fine.wav", "rejected.wav", "broken.wav"):
        assert fates.settle(key, Lane.BACKFILL)
    assert [
        (each["key"], each["lane"], each["version"], each["outcome"], each["level"])
        for each in lines
    ] == [
        ("fine.wav", "backfill", "tiny-1", "created", "INFO"),
        ("rejected.wav", "backfill", "tiny-1", "rejected", "WARNING"),
        ("broken.wav", "backfill", "tiny-1", "created", "WARNING"),
    ]
    assert "bad_sidecar" in lines[2]["message"]
    assert lines[0]["seconds"] >= 0


def _logged(message: str, error: Exception | None = None) -> list[str]:
    """Return the lines of text that an error's message becomes."""
    record = logging.LogRecord(
        "audiofuse", logging.ERROR, "file", 1, "%s: failed", (message,),
        (type(error), error, error.__traceback__) if error else None,
    )  # fmt: skip
    return TextFormatter(TEXT).format(record).split("\n")


FORGED = "a.wav\n2026-01-01 00:00:00,000 INFO audiofuse: all is well"


@pytest.mark.parametrize("key", [FORGED, "a\r.wav", "\x1b[2Ja.wav", "\u2028a", "\u202ea", "\x85a"])
def test_whoever_names_an_object_writes_no_line(key: str) -> None:
    """Line ends, terminal codes and turns of direction in a key are escaped; letters stay."""
    (line,) = _logged(f"ä{key}")
    assert line.isprintable()
    assert line.endswith(": failed")
    assert "ä" in line


def test_an_errors_text_cannot_look_like_a_line() -> None:
    """A traceback goes on over lines, each indented, whatever the error says."""
    first, *rest = _logged("a.wav", ValueError(FORGED))
    assert first.endswith("a.wav: failed")
    assert any("all is well" in line for line in rest)
    assert all(line.startswith("    ") for line in rest)


def secret_settings() -> set[str]:
    """Return the names of the settings that nobody may read."""
    return {
        name
        for name, field in Settings.model_fields.items()
        if SecretStr in (field.annotation, *get_args(field.annotation))
    }


def test_what_is_away_is_reported_without_its_password(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """No error, log line, ``repr`` or table of settings shows a secret, at DEBUG."""
    secret = "s3cr3t-0123456789"
    values = dict.fromkeys(secret_settings(), secret) | {
        "broker_url": f"redis://user:{secret}@127.0.0.1:1/0",
        "redis_events_url": f"redis://user:{secret}@127.0.0.1:1/0",
        "buckets": json.dumps(
            [{"name": "sounds", "address": "s3://sounds", "secret_access_key": secret}]
        ),
    }
    settings = Settings(
        s3_endpoint_url="http://127.0.0.1:1", s3_access_key_id="key",
        qdrant_url="http://127.0.0.1:1", home=tmp_path_factory.mktemp("home"), **values,
    )  # fmt: skip
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel("DEBUG")
    try:
        deployment = Deployment(settings)
        for ask in (deployment.queue, deployment.index, deployment.store):
            with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
                list(ask())
            logging.getLogger("audiofuse").error("away: %s", caught.value, exc_info=caught.value)
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
    said.write(repr(settings) + str(settings) + repr(settings_table(settings)))
    assert "away: " in said.getvalue()
    assert secret not in said.getvalue()
